"""The hub resolver against a small hub of our own, over HTTP and through huggingface_hub."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import pytest

from control_plane.errors import Refused, SourceUnavailable
from control_plane.resolvers.filesystem import FilesystemResolver
from control_plane.resolvers.hub import HubResolver
from control_plane.resolvers.types import Resolved, ResolveRequest
from tests.control_plane.adapter_files import write_adapter
from tests.hub_server import HubServer, hub_server


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite runs with HF_HUB_OFFLINE=1, which huggingface_hub reads when it is imported."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with hub_server() as hub:
        yield hub


@pytest.fixture
def resolver(hub: HubServer) -> HubResolver:
    return HubResolver(("acme/bot", "open/*"), endpoint=hub.url)


def at(source: str) -> ResolveRequest:
    return ResolveRequest(tenant="acme", name="bot", source=source)


async def on_disk(adapter: Path) -> Resolved:
    resolved = await FilesystemResolver([adapter.parent]).resolve(at(str(adapter)))
    assert resolved is not None
    return resolved


async def test_an_adapter_is_what_it_is_on_disk_pinned_to_the_commit(
    resolver: HubResolver, hub: HubServer, adapter: Path
) -> None:
    commit = hub.commit("acme/bot", adapter)
    found = await resolver.resolve(at("hf://acme/bot"))
    assert found is not None
    assert found.uri == f"hf://acme/bot@main#commit={commit}"
    expected = await on_disk(adapter)
    assert replace(found, uri=expected.uri) == expected
    assert all(commit in path for path, _ in hub.seen[1:]), "main is asked for once, the rest by commit"


async def test_a_kept_uri_resolves_to_what_is_there_now(
    resolver: HubResolver, hub: HubServer, adapter: Path, tmp_path: Path
) -> None:
    hub.commit("acme/bot", adapter)
    first = await resolver.resolve(at("hf://acme/bot"))
    assert first is not None
    newer = hub.commit("acme/bot", write_adapter(tmp_path / "newer", fill=2.0))
    second = await resolver.resolve(at(first.uri))
    assert second is not None
    assert second.uri == f"hf://acme/bot@main#commit={newer}"
    assert second.digest == (await on_disk(tmp_path / "newer")).digest != first.digest


async def test_an_older_commit_and_a_directory_can_be_named(
    resolver: HubResolver, hub: HubServer, adapter: Path, tmp_path: Path
) -> None:
    commit = hub.commit("open/many", adapter, prefix="adapters/bot/")
    hub.commit("open/many", write_adapter(tmp_path / "newer", fill=2.0), prefix="adapters/bot/")
    found = await resolver.resolve(at(f"hf://open/many@{commit}/adapters/bot/"))
    assert found is not None
    assert found.uri == f"hf://open/many@{commit}/adapters/bot#commit={commit}"
    assert found.digest == (await on_disk(adapter)).digest


@pytest.mark.parametrize("source", ["hf://globex/bot", "hf://acme/bot2", "hf://openly/bot"])
async def test_a_repository_that_is_not_allowed_is_refused_unasked(
    resolver: HubResolver, hub: HubServer, source: str
) -> None:
    with pytest.raises(Refused, match="is not among the allowed repositories"):
        await resolver.resolve(at(source))
    assert hub.seen == []


@pytest.mark.parametrize("source", ["hf://acme", "hf://acme/bot/../x", "hf://acme/bot?x", "hf://../acme/bot"])
async def test_a_source_that_is_no_place_in_a_repository_is_refused(
    resolver: HubResolver, source: str
) -> None:
    with pytest.raises(Refused, match="must be hf://"):
        await resolver.resolve(at(source))


async def test_what_is_not_there_or_not_in_the_hub_is_left_to_others(
    resolver: HubResolver, hub: HubServer, adapter: Path
) -> None:
    hub.commit("open/bot", adapter)
    assert await resolver.resolve(at("hf://open/missing")) is None
    assert await resolver.resolve(at("hf://open/bot@missing")) is None
    assert await resolver.resolve(at("hf://open/bot/missing")) is None
    num_seen = len(hub.seen)
    assert await resolver.resolve(at("")) is None
    assert await resolver.resolve(at("/adapters/bot")) is None
    assert len(hub.seen) == num_seen


@pytest.mark.parametrize("status", [403, 500])
async def test_a_hub_that_refuses_or_fails_is_unavailable(
    resolver: HubResolver, hub: HubServer, adapter: Path, status: int
) -> None:
    hub.commit("acme/bot", adapter)
    hub.status = status
    with pytest.raises(SourceUnavailable, match=rf"hf://acme/bot@main cannot be read.*{status}"):
        await resolver.resolve(at("hf://acme/bot"))


async def test_a_hub_that_is_not_there_is_unavailable(unused_tcp_port: int) -> None:
    resolver = HubResolver(("acme/bot",), endpoint=f"http://127.0.0.1:{unused_tcp_port}")
    with pytest.raises(SourceUnavailable, match="hf://acme/bot@main cannot be read"):
        await resolver.resolve(at("hf://acme/bot"))


async def test_a_confined_request_reads_nothing_from_the_hub(resolver: HubResolver, hub: HubServer) -> None:
    with pytest.raises(Refused, match="is outside of what is kept for 'acme'"):
        await resolver.resolve(replace(at("hf://acme/bot"), confined=True))
    assert hub.seen == []


async def test_only_the_configured_token_is_sent(
    hub: HubServer, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_user")
    hub.commit("acme/bot", adapter)
    await HubResolver(("acme/bot",), endpoint=hub.url).resolve(at("hf://acme/bot"))
    assert all("authorization" not in headers for _, headers in hub.seen)
    hub.seen.clear()
    await HubResolver(("acme/bot",), endpoint=hub.url, token="hf_ours").resolve(at("hf://acme/bot"))
    assert {headers.get("authorization") for _, headers in hub.seen} == {"Bearer hf_ours"}
