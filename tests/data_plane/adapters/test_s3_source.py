"""Adapters read from S3 by a worker: against moto over HTTP, pinned as the control plane pins them."""

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
import torch

from data_plane.adapters.disk_cache import DiskCache
from data_plane.adapters.loader import DiskLoader, SourceLoader
from data_plane.adapters.revision import AdapterSource, Tier
from data_plane.adapters.s3_source import MAX_CUTS, S3Access, S3Source
from data_plane.config import EngineConfig
from data_plane.engine.remotes import build_remotes
from data_plane.errors import AdapterRefused, AdapterUnreadable, InvalidRequest
from tests.data_plane.world import World, source_of, tiny_config
from tests.s3.proxy import Before, Busy, Cut, FaultyProxy, Pass, Stall
from tests.s3.service import KEY, SECRET, S3Service, s3_service

WEIGHTS = "adapter_model.safetensors"
PREFIX = "tenants/acme/bot"


@pytest.fixture(scope="module")
def service() -> Iterator[S3Service]:
    with s3_service() as service:
        service.create_bucket("adapters")
        service.create_bucket("secret")
        yield service


@pytest.fixture
def proxy(service: S3Service) -> Iterator[FaultyProxy]:
    with FaultyProxy(service.url) as proxy:
        yield proxy


@pytest.fixture
def stored(service: S3Service, world: World) -> AdapterSource:
    adapter = world.adapters["narrow"]
    service.upload(adapter, "adapters", PREFIX)
    return source_of(adapter, uri=pinned(adapter))


def config_of(world: World, proxy: FaultyProxy, **overrides: object) -> EngineConfig:
    fields: dict[str, object] = {
        "s3_buckets": ("adapters",),
        "s3_endpoint_url": proxy.url,
        "s3_region": "us-east-1",
        "s3_access_key_id": KEY,
        "s3_secret_access_key": SECRET,
    }
    return tiny_config(world.base, world.root, **(fields | overrides))


@pytest.fixture
def loader(world: World, proxy: FaultyProxy) -> SourceLoader:
    return SourceLoader(replace(world.runtime.reader, remotes=build_remotes(config_of(world, proxy))))


def pinned(directory: Path, bucket: str = "adapters") -> str:
    """By ETags, which of objects that were put in one piece are the MD5 of their bytes."""
    pins = {
        file.name: f"etag:{hashlib.md5(file.read_bytes()).hexdigest()}"
        for file in directory.iterdir()
        if file.name.startswith("adapter_")
    }
    return f"s3://{bucket}/{PREFIX}#{urlencode(pins)}"


def load(loader: SourceLoader, source: AdapterSource) -> torch.Tensor:
    return loader.load(source, again=False).adapter.modules[0].b


def test_an_adapter_is_what_it_is_on_disk_and_every_read_is_pinned(
    loader: SourceLoader, stored: AdapterSource, world: World, proxy: FaultyProxy
):
    on_disk = world.runtime.reader.read(source_of(world.adapters["narrow"])).modules[0].b
    assert torch.equal(load(loader, stored), on_disk)
    pins = parse_qs(urlsplit(stored.uri).fragment)
    assert [(seen.method, seen.path.rpartition("/")[2].partition("?")[0]) for seen in proxy.seen] == [
        ("GET", "adapter_config.json"),
        ("GET", WEIGHTS),
    ]
    assert proxy.seen[1].headers["if-match"].strip('"') == pins[WEIGHTS][0].removeprefix("etag:")


def test_a_cut_read_goes_on_where_it_was_cut(loader: SourceLoader, stored: AdapterSource, proxy: FaultyProxy):
    proxy.faults.extend([Pass(), Cut(1000), Cut(500)])
    load(loader, stored)
    assert [seen.headers.get("range") for seen in proxy.seen] == [None, None, "bytes=1000-", "bytes=1500-"]


def test_a_read_that_is_cut_too_often_is_unreadable(
    loader: SourceLoader, stored: AdapterSource, proxy: FaultyProxy
):
    proxy.faults.extend([Cut(0)] * (MAX_CUTS + 1))
    with pytest.raises(AdapterUnreadable, match=f"ended early {MAX_CUTS + 1} times"):
        load(loader, stored)


def test_a_busy_service_is_asked_again(loader: SourceLoader, stored: AdapterSource, proxy: FaultyProxy):
    proxy.faults.append(Busy())
    load(loader, stored)
    assert len(proxy.seen) == 3


def test_a_silent_service_is_unreadable_after_the_time_out(
    world: World, stored: AdapterSource, proxy: FaultyProxy
):
    remotes = build_remotes(config_of(world, proxy, s3_timeout_s=0.2))
    proxy.faults.extend([Stall()] * 10)
    with pytest.raises(AdapterUnreadable, match=r"cannot be read: .*[Tt]ime"):
        load(SourceLoader(replace(world.runtime.reader, remotes=remotes)), stored)


def test_wrong_credentials_are_unreadable_with_the_reason(
    loader: SourceLoader, stored: AdapterSource, service: S3Service
):
    with service.checking_credentials(), pytest.raises(AdapterUnreadable, match="InvalidAccessKeyId"):
        load(loader, stored)


def test_an_object_that_was_overwritten_since_is_refused_without_reading_it(
    loader: SourceLoader, stored: AdapterSource, service: S3Service
):
    service.put("adapters", f"{PREFIX}/{WEIGHTS}", b"other")
    with pytest.raises(AdapterRefused, match="was overwritten since it was registered"):
        load(loader, stored)


def test_an_object_that_is_overwritten_between_two_pieces_is_refused(
    loader: SourceLoader, stored: AdapterSource, service: S3Service, proxy: FaultyProxy
):
    overwrite = Before(lambda: service.put("adapters", f"{PREFIX}/{WEIGHTS}", b"x" * 10_000))
    proxy.faults.extend([Pass(), Cut(1000), overwrite])
    with pytest.raises(AdapterRefused, match="was overwritten"):
        load(loader, stored)


def test_an_object_that_is_gone_is_unreadable(
    loader: SourceLoader, stored: AdapterSource, service: S3Service
):
    service.delete("adapters", f"{PREFIX}/{WEIGHTS}")
    with pytest.raises(AdapterUnreadable, match="does not exist"):
        load(loader, stored)


def test_bytes_of_another_digest_are_refused(loader: SourceLoader, stored: AdapterSource):
    other = replace(stored, revision=replace(stored.revision, digest="sha256:" + "0" * 64))
    with pytest.raises(AdapterRefused, match="digest"):
        load(loader, other)


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("s3://secret/a#adapter_config.json=etag%3Ax", "outside of s3_buckets"),
        ("s3://adapters/a/../../secret#adapter_config.json=etag%3Ax", "has empty, '.' or '..' parts"),
        ("s3://adapters#adapter_config.json=etag%3Ax", "has empty, '.' or '..' parts"),
        ("s3://adapters/a", "does not say which bytes are meant"),
        ("s3://adapters/a#..%2Fb=etag%3Ax", "is no version or etag"),
        ("s3://adapters/a#adapter_config.json=latest", "is no version or etag"),
    ],
)
def test_what_is_not_allowed_or_not_pinned_is_refused_unasked(
    loader: SourceLoader, stored: AdapterSource, proxy: FaultyProxy, uri: str, reason: str
):
    with pytest.raises(AdapterRefused, match=reason):
        load(loader, replace(stored, uri=uri))
    assert proxy.seen == []


def test_a_worker_without_buckets_reads_none(world: World, stored: AdapterSource):
    with pytest.raises(AdapterRefused, match="not s3:// sources"):
        load(SourceLoader(world.runtime.reader), stored)


def test_an_object_above_what_can_be_needed_is_refused_before_it_is_read(
    stored: AdapterSource, proxy: FaultyProxy
):
    access = S3Access(endpoint_url=proxy.url, region="us-east-1", access_key_id=KEY, secret_access_key=SECRET)
    files = S3Source(("adapters",), access).open(stored.uri)
    with pytest.raises(AdapterRefused, match="at most 100 can be needed"):
        files.read(WEIGHTS, max_bytes=100)


def test_the_disk_cache_keeps_what_was_read_and_the_next_load_needs_no_bucket(
    world: World, stored: AdapterSource, proxy: FaultyProxy, tmp_path: Path
):
    remotes = build_remotes(config_of(world, proxy))
    cache = DiskCache(tmp_path / "cache", 10 << 20)
    loader = DiskLoader(
        reader=replace(world.runtime.reader, remotes=remotes),
        landed=replace(world.runtime.reader, roots=(cache.directory,)),
        cache=cache,
    )
    assert loader.load(stored, again=False).tier is Tier.SOURCE
    num_seen = len(proxy.seen)
    assert num_seen == 2, "each file was read once"
    assert loader.load(stored, again=False).tier is Tier.DISK
    assert len(proxy.seen) == num_seen
    loader.close()


def test_without_its_library_a_worker_says_what_to_install(
    world: World, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "data_plane.adapters.s3_source", None)
    with pytest.raises(InvalidRequest, match=r"s3_buckets.*pip install 'loraplane\[s3\]'"):
        build_remotes(config_of(world, proxy))
