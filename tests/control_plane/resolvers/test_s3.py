"""The S3 resolver against moto over HTTP: what is found, what is pinned, and what faults do to it."""

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from redis.asyncio import Redis

from control_plane.errors import Refused, SourceUnavailable
from control_plane.registry.service import Registry
from control_plane.registry.types import AdapterKey, NewAdapter
from control_plane.resolvers.chain import ResolverChain
from control_plane.resolvers.filesystem import FilesystemResolver
from control_plane.resolvers.s3 import S3Resolver
from control_plane.resolvers.s3_files import MAX_CUTS
from control_plane.resolvers.types import Resolved, ResolveRequest
from tests.control_plane.adapter_files import rewrite_header, write_adapter
from tests.control_plane.resolvers.conftest import PLACES, access
from tests.s3.proxy import Before, Busy, Cut, Fault, FaultyProxy, Pass, Stall
from tests.s3.service import S3Service

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
BY_NAME = ResolveRequest(tenant="acme", name="bot")
KEPT = "tenants/acme/bot"


@pytest.fixture
def stored(service: S3Service, adapter: Path) -> Path:
    service.upload(adapter, "adapters", KEPT)
    return adapter


def at(source: str) -> ResolveRequest:
    return replace(BY_NAME, source=source)


def pins(resolved: Resolved) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(resolved.uri).fragment).items()}


async def on_disk(adapter: Path) -> Resolved:
    resolved = await FilesystemResolver([adapter.parent]).resolve(at(str(adapter)))
    assert resolved is not None
    return resolved


async def find(resolver: S3Resolver, request: ResolveRequest = BY_NAME) -> Resolved:
    resolved = await resolver.resolve(request)
    assert resolved is not None
    return resolved


async def test_an_adapter_is_what_it_is_on_disk_found_by_name_and_by_source(
    resolver: S3Resolver, stored: Path
) -> None:
    expected = await on_disk(stored)
    for request in (BY_NAME, at(f"s3://adapters/{KEPT}"), at(f"s3://adapters/{KEPT}/")):
        found = await find(resolver, request)
        assert found.uri.startswith(f"s3://adapters/{KEPT}#")
        assert replace(found, uri=expected.uri) == expected


async def test_what_is_not_there_or_not_in_s3_is_left_to_others(
    resolver: S3Resolver, stored: Path, proxy: FaultyProxy
) -> None:
    assert await resolver.resolve(at("s3://adapters/tenants/acme/missing")) is None
    num_seen = len(proxy.seen)
    assert await resolver.resolve(at("/adapters/bot")) is None
    assert await resolver.resolve(at("hf://acme/bot")) is None
    assert len(proxy.seen) == num_seen


async def test_a_file_is_pinned_to_its_etag_and_every_read_asks_for_it(
    resolver: S3Resolver, stored: Path, proxy: FaultyProxy
) -> None:
    found = pins(await find(resolver))
    assert set(found) == {CONFIG, WEIGHTS}
    for request in proxy.seen:
        name = urlsplit(request.path).path.rpartition("/")[2]
        if request.method == "GET":
            assert found[name] == f"etag:{request.headers['if-match'].strip(chr(34))}"


async def test_in_a_versioned_bucket_a_file_is_pinned_to_its_version(
    resolver: S3Resolver, service: S3Service, adapter: Path, proxy: FaultyProxy
) -> None:
    service.upload(adapter, "versioned", "bot")
    first = await find(resolver, at("s3://versioned/bot"))
    service.upload(write_adapter(adapter, fill=2.0), "versioned", "bot")
    second = await find(resolver, at(first.uri))  # its pins say what was read, not what to read
    assert first.digest != second.digest
    assert all(pin.startswith("version:") for pin in pins(second).values())
    assert pins(first)[WEIGHTS] != pins(second)[WEIGHTS]
    version = pins(second)[WEIGHTS].removeprefix("version:")
    last = [seen for seen in proxy.seen if seen.method == "GET"][-1]
    assert parse_qs(urlsplit(last.path).query)["versionId"] == [version]


async def test_the_same_files_uploaded_again_are_no_new_revision_and_are_read_where_they_are_now(
    redis: Redis, resolver: S3Resolver, service: S3Service, adapter: Path
) -> None:
    service.upload(adapter, "versioned", "again")
    registry = Registry(redis, ResolverChain([resolver], time.monotonic))
    declared = NewAdapter(key=AdapterKey("acme", "bot"), source="s3://versioned/again")
    first = await registry.register(declared)
    service.upload(adapter, "versioned", "again")
    assert await registry.register(declared) == first
    published = await registry.publish(declared.key)
    assert [revision.number for revision in published.revisions] == [1]
    assert published.current.digest == first.current.digest
    assert published.current.source != first.current.source  # pinned to the newer version
    assert await registry.publish(declared.key) == published


async def test_shards_are_read_and_pinned_through_their_index(
    resolver: S3Resolver, service: S3Service, tmp_path: Path
) -> None:
    adapter = tmp_path / "sharded"
    for shard in ("a.safetensors", "b.safetensors"):
        write_adapter(adapter, weights=shard)
    index = adapter / f"{WEIGHTS}.index.json"
    index.write_text('{"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}')
    service.upload(adapter, "adapters", "sharded")
    found = await find(resolver, at("s3://adapters/sharded"))
    assert found.digest == (await on_disk(adapter)).digest
    assert set(pins(found)) == {CONFIG, index.name, "a.safetensors", "b.safetensors"}


async def test_a_header_longer_than_the_first_read_is_read_whole(
    resolver: S3Resolver, service: S3Service, adapter: Path
) -> None:
    rewrite_header(adapter / WEIGHTS, note="x" * (300 << 10))
    service.upload(adapter, "adapters", "long")
    found = await find(resolver, at("s3://adapters/long"))
    assert found.digest == (await on_disk(adapter)).digest


async def test_garbage_is_refused_by_its_header_before_the_rest_is_transferred(
    resolver: S3Resolver, service: S3Service, adapter: Path, proxy: FaultyProxy
) -> None:
    (adapter / WEIGHTS).write_bytes(b"\xff" * (1 << 20))
    service.upload(adapter, "adapters", "garbage")
    with pytest.raises(Refused, match=f"s3://adapters/garbage/{WEIGHTS}.*no safetensors file"):
        await resolver.resolve(at("s3://adapters/garbage"))
    assert proxy.seen[-1].headers["range"] == f"bytes=0-{(128 << 10) - 1}"


async def test_weights_without_a_config_are_refused_by_what_is_missing(
    resolver: S3Resolver, service: S3Service, adapter: Path
) -> None:
    (adapter / CONFIG).unlink()
    service.upload(adapter, "adapters", "bare")
    with pytest.raises(Refused, match=f"s3://adapters/bare has no {CONFIG}"):
        await resolver.resolve(at("s3://adapters/bare"))


@pytest.mark.parametrize("source", ["s3://secret/bot", "s3://missing/bot", "s3://adapters2/bot"])
async def test_a_bucket_that_is_not_allowed_is_refused_unasked_whether_it_exists_or_not(
    resolver: S3Resolver, proxy: FaultyProxy, source: str
) -> None:
    with pytest.raises(Refused, match="is outside the allowed buckets"):
        await resolver.resolve(at(source))
    assert proxy.seen == []


@pytest.mark.parametrize("num_cuts", [1, MAX_CUTS])
async def test_a_cut_read_goes_on_where_it_was_cut(
    resolver: S3Resolver, service: S3Service, proxy: FaultyProxy, tmp_path: Path, num_cuts: int
) -> None:
    large = write_adapter(tmp_path / "large", rank=10_000)
    service.upload(large, "adapters", "large")
    proxy.faults.extend([Pass(), Pass(), *[Cut(200_000)] * num_cuts])  # the config, the header, then the cuts
    found = await find(resolver, at("s3://adapters/large"))
    assert found.digest == (await on_disk(large)).digest
    ranges = [seen.headers["range"] for seen in proxy.seen if seen.method == "GET"]
    assert len(set(ranges[2:])) == num_cuts + 1


async def test_a_read_that_is_cut_too_often_is_unavailable(
    resolver: S3Resolver, stored: Path, proxy: FaultyProxy
) -> None:
    proxy.faults.extend([Cut(0)] * (MAX_CUTS + 1))
    with pytest.raises(SourceUnavailable, match=rf"{CONFIG} ended early {MAX_CUTS + 1} times"):
        await resolver.resolve(BY_NAME)


async def test_a_busy_service_is_asked_again(resolver: S3Resolver, stored: Path, proxy: FaultyProxy) -> None:
    proxy.faults.append(Busy())
    assert (await find(resolver)).digest == (await on_disk(stored)).digest


async def test_a_service_that_stays_busy_is_unavailable(
    resolver: S3Resolver, stored: Path, proxy: FaultyProxy
) -> None:
    proxy.faults.extend([Busy()] * 10)
    with pytest.raises(SourceUnavailable, match="S3 answers"):
        await resolver.resolve(BY_NAME)


async def test_a_silent_service_is_unavailable_after_the_time_out(stored: Path, proxy: FaultyProxy) -> None:
    resolver = S3Resolver(PLACES, access(proxy, timeout_s=0.2))
    proxy.faults.extend([Stall()] * 10)
    with pytest.raises(SourceUnavailable, match=f"{CONFIG} cannot be read: .*[Tt]ime"):
        await resolver.resolve(BY_NAME)
    await resolver.close()


async def test_a_service_that_is_not_there_is_unavailable(proxy: FaultyProxy, unused_tcp_port: int) -> None:
    nobody = replace(access(proxy), endpoint_url=f"http://127.0.0.1:{unused_tcp_port}")
    resolver = S3Resolver(PLACES, nobody)
    with pytest.raises(SourceUnavailable, match=r"s3://adapters/tenants/acme/bot/.*cannot be read"):
        await resolver.resolve(BY_NAME)
    await resolver.close()


async def test_wrong_credentials_are_unavailable_with_the_reason(
    stored: Path, proxy: FaultyProxy, service: S3Service
) -> None:
    resolver = S3Resolver(PLACES, access(proxy, key="wrong-key"))
    with service.checking_credentials(), pytest.raises(SourceUnavailable, match="S3 denies access"):
        await resolver.resolve(BY_NAME)
    await resolver.close()


@pytest.mark.parametrize(
    "until_then",
    [
        pytest.param([Pass()], id="between its look-up and its header"),
        pytest.param([Pass(), Pass()], id="between its header and its tensors"),
        pytest.param([Pass(), Pass(), Cut(1000)], id="between a cut and what follows it"),
    ],
)
async def test_an_object_that_is_overwritten_while_it_is_read_is_unavailable_never_a_mixture(
    resolver: S3Resolver, service: S3Service, proxy: FaultyProxy, tmp_path: Path, until_then: list[Fault]
) -> None:
    old = write_adapter(tmp_path / "old", rank=1000)
    new = write_adapter(tmp_path / "new", rank=1000, fill=2.0)
    service.upload(old, "adapters", "moving")
    proxy.faults.extend([*until_then, Before(lambda: service.upload(new, "adapters", "moving"))])
    with pytest.raises(SourceUnavailable, match=f"{WEIGHTS}: changed while it was read"):
        await resolver.resolve(at("s3://adapters/moving"))


async def test_a_config_that_is_replaced_while_the_weights_are_read_is_unavailable(
    resolver: S3Resolver, service: S3Service, proxy: FaultyProxy, adapter: Path, tmp_path: Path
) -> None:
    service.upload(adapter, "adapters", "pair")
    replaced = write_adapter(tmp_path / "new", rank=8)
    replaced_config = (replaced / CONFIG).read_bytes()
    replace_it = Before(lambda: service.put("adapters", f"pair/{CONFIG}", replaced_config))
    proxy.faults.extend([Pass(), Pass(), replace_it])
    with pytest.raises(SourceUnavailable, match=f"{CONFIG} changed while it was read"):
        await resolver.resolve(at("s3://adapters/pair"))


async def test_many_at_once_share_one_client(resolver: S3Resolver, stored: Path) -> None:
    found = await asyncio.gather(*(resolver.resolve(BY_NAME) for _ in range(8)))
    assert len(set(found)) == 1


async def test_a_confined_request_reads_what_is_kept_for_its_tenant_and_no_others(
    resolver: S3Resolver, stored: Path
) -> None:
    assert await resolver.resolve(replace(at(f"s3://adapters/{KEPT}"), confined=True))
    for source in ("s3://adapters/tenants/globex/bot", "s3://versioned/tenants/acme/bot"):
        with pytest.raises(Refused, match="is outside of what is kept for 'acme'"):
            await resolver.resolve(replace(at(source), confined=True))


def test_the_secret_is_in_no_printed_form(proxy: FaultyProxy) -> None:
    assert access(proxy).secret_access_key
    assert access(proxy).secret_access_key not in repr(access(proxy))
