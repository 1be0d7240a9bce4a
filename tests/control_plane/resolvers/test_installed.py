"""A third party's resolver, installed as pip leaves it: a module and its entry point."""

import sys
from pathlib import Path

import pytest

from control_plane.config import ControlSettings
from control_plane.errors import InvalidArgument, Refused, SourceUnavailable
from control_plane.resolvers.build import build_chain
from control_plane.resolvers.installed import make_installed
from control_plane.resolvers.types import ResolveRequest
from tests.control_plane.adapter_files import write_adapter

MODULE = """
from control_plane.errors import Refused
from control_plane.resolvers.types import Resolved

class Vault:
    name = "whatever it calls itself"

    def __init__(self, options):
        self.url = options["url"]

    async def resolve(self, request):
        if request.name == "broken":
            raise ZeroDivisionError("of theirs")
        if request.name == "refused":
            raise Refused("not in this vault")
        if request.name == "unknown":
            return None
        uri = f"{self.url}/{request.name}"
        return Resolved(uri=uri, digest="sha256:0", rank=8, target_modules=(), size_bytes=1)

    async def close(self):
        raise ZeroDivisionError("of theirs")
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    metadata = site / "acme_vault-1.0.dist-info"
    metadata.mkdir(parents=True)
    (site / "acme_vault.py").write_text(MODULE)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-vault\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[loraplane.resolvers]\nvault = acme_vault:Vault\nabsent = acme_vault:Absent\n"
    )
    monkeypatch.syspath_prepend(site)
    monkeypatch.delitem(sys.modules, "acme_vault", raising=False)


def named(name: str) -> ResolveRequest:
    return ResolveRequest(tenant="acme", name=name)


def settings(*resolvers: str, root: Path) -> ControlSettings:
    return ControlSettings(
        resolvers=resolvers, adapter_roots=(root,), resolver_options={"vault": {"url": "vault://x"}}
    )


@pytest.mark.usefixtures("installed")
async def test_it_takes_its_place_in_the_configured_order_with_its_options(tmp_path: Path) -> None:
    on_disk = write_adapter(tmp_path / "acme" / "bot")
    first = build_chain(settings("vault", "filesystem", root=tmp_path), lambda: 0.0)
    assert (await first.resolve(named("bot"))).uri == "vault://x/bot"
    last = build_chain(settings("filesystem", "vault", root=tmp_path), lambda: 0.0)
    assert (await last.resolve(named("bot"))).uri == str(on_disk)
    assert (await last.resolve(named("other"))).uri == "vault://x/other"


@pytest.mark.usefixtures("installed")
async def test_its_errors_fall_to_the_next_and_are_in_the_message(tmp_path: Path) -> None:
    chain = build_chain(settings("vault", "filesystem", root=tmp_path), lambda: 0.0)
    with pytest.raises(SourceUnavailable, match="vault: failed with ZeroDivisionError: of theirs"):
        await chain.resolve(named("broken"))
    with pytest.raises(Refused, match="vault: not in this vault"):
        await chain.resolve(named("refused"))
    write_adapter(tmp_path / "acme" / "broken")
    assert (await chain.resolve(named("broken"))).rank == 4


@pytest.mark.usefixtures("installed")
async def test_one_that_does_not_close_keeps_no_other_from_closing(tmp_path: Path) -> None:
    await build_chain(settings("vault", root=tmp_path), lambda: 0.0).close()


@pytest.mark.usefixtures("installed")
def test_one_that_does_not_start_stops_the_start_by_name() -> None:
    with pytest.raises(InvalidArgument, match=r"'absent' \(acme_vault:Absent\) does not start"):
        make_installed("absent", {})
    with pytest.raises(InvalidArgument, match=r"'vault' .*does not start: KeyError: 'url'"):
        make_installed("vault", {})


@pytest.mark.usefixtures("installed")
def test_one_that_is_not_named_is_not_imported(tmp_path: Path) -> None:
    build_chain(settings("filesystem", root=tmp_path), lambda: 0.0)
    assert "acme_vault" not in sys.modules


def test_one_that_is_not_installed_is_refused_by_name() -> None:
    with pytest.raises(InvalidArgument, match="'vault' is offered by no installed entry point"):
        make_installed("vault", {})
