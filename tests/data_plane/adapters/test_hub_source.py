"""Adapters read from a hub by a worker, through huggingface_hub and over HTTP."""

from collections.abc import Iterator
from dataclasses import replace

import huggingface_hub.constants
import pytest
import torch

from data_plane.adapters.loader import SourceLoader
from data_plane.adapters.revision import AdapterSource
from data_plane.engine.remotes import build_remotes
from data_plane.errors import AdapterRefused, AdapterUnreadable
from tests.data_plane.world import World, source_of, tiny_config
from tests.hub_server import HubServer, hub_server


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch):
    """The suite runs with HF_HUB_OFFLINE=1, which huggingface_hub reads when it is imported."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with hub_server() as hub:
        yield hub


@pytest.fixture
def stored(hub: HubServer, world: World) -> AdapterSource:
    commit = hub.commit("acme/bot", world.adapters["narrow"])
    return source_of(world.adapters["narrow"], uri=f"hf://acme/bot@main#commit={commit}")


@pytest.fixture
def loader(world: World, hub: HubServer) -> SourceLoader:
    config = tiny_config(
        world.base, world.root, hub_repos=("acme/*",), hub_endpoint=hub.url, hub_token="hf_ours"
    )
    return SourceLoader(replace(world.runtime.reader, remotes=build_remotes(config)))


def load(loader: SourceLoader, source: AdapterSource) -> torch.Tensor:
    return loader.load(source, again=False).adapter.modules[0].b


def test_an_adapter_is_what_it_is_on_disk_read_with_the_configured_token(
    loader: SourceLoader, stored: AdapterSource, world: World, hub: HubServer
):
    on_disk = world.runtime.reader.read(source_of(world.adapters["narrow"])).modules[0].b
    assert torch.equal(load(loader, stored), on_disk)
    assert {headers.get("authorization") for _, headers in hub.seen} == {"Bearer hf_ours"}


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("hf://globex/bot@main#commit=" + "0" * 40, "outside of hub_repos"),
        ("hf://acme/bot@main", "does not say which commit"),
        ("hf://acme/bot@main#commit=main", "does not say which commit"),
        ("hf://acme/bot@main/../x#commit=" + "0" * 40, "does not say which commit"),
    ],
)
def test_what_is_not_allowed_or_not_pinned_is_refused_unasked(
    loader: SourceLoader, stored: AdapterSource, hub: HubServer, uri: str, reason: str
):
    with pytest.raises(AdapterRefused, match=reason):
        load(loader, replace(stored, uri=uri))
    assert hub.seen == []


def test_a_commit_that_is_gone_is_unreadable(loader: SourceLoader, stored: AdapterSource):
    with pytest.raises(AdapterUnreadable, match="cannot be read"):
        load(loader, replace(stored, uri="hf://acme/bot@main#commit=" + "0" * 40))


def test_a_hub_that_denies_is_unreadable(loader: SourceLoader, stored: AdapterSource, hub: HubServer):
    hub.status = 403
    with pytest.raises(AdapterUnreadable, match=r"cannot be read.*403"):
        load(loader, stored)


def test_a_worker_without_repositories_reads_none(world: World, stored: AdapterSource):
    with pytest.raises(AdapterRefused, match="not hf:// sources"):
        load(SourceLoader(world.runtime.reader), stored)
