"""The digest of an adapter is one thing in both planes, and in a shell."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from control_plane.resolvers.filesystem import FilesystemResolver
from control_plane.resolvers.types import ResolveRequest
from data_plane.adapters.reader import content_digest
from tests.control_plane.adapter_files import write_adapter
from tests.digests import digest_of
from tests.oracle import ADAPTERS_DIR

DEMO = sorted(config.parent for config in ADAPTERS_DIR.rglob("adapter_config.json"))


async def resolved_digest(directory: Path) -> str:
    request = ResolveRequest(tenant="t", name="n", source=str(directory))
    resolved = await FilesystemResolver([directory.parent]).resolve(request)
    assert resolved is not None
    return resolved.digest


@pytest.mark.parametrize("directory", DEMO, ids=lambda path: path.name)
async def test_both_planes_agree_with_the_definition(directory: Path) -> None:
    names = ("adapter_config.json", "adapter_model.safetensors")
    worker = content_digest({name: (directory / name).read_bytes() for name in names})
    assert await resolved_digest(directory) == worker == digest_of(directory)


async def test_sha256sum_prints_it(tmp_path: Path) -> None:
    directory = write_adapter(tmp_path / "bot")
    command = "sha256sum adapter_config.json adapter_model.safetensors | sha256sum"
    printed = subprocess.run(["sh", "-c", command], cwd=directory, capture_output=True, text=True, check=True)
    assert await resolved_digest(directory) == f"sha256:{printed.stdout.split()[0]}"


async def test_other_files_beside_the_weights_do_not_count(tmp_path: Path) -> None:
    directory = write_adapter(tmp_path / "bot")
    before = await resolved_digest(directory)
    (directory / "README.md").write_text("notes")
    assert await resolved_digest(directory) == before


async def test_both_planes_agree_on_sharded_adapters(tmp_path: Path) -> None:
    directory = write_adapter(tmp_path / "bot", weights="adapter_model-00001-of-00002.safetensors")
    shutil.copy(directory / "adapter_model-00001-of-00002.safetensors", tmp_path / "second")
    (tmp_path / "second").rename(directory / "adapter_model-00002-of-00002.safetensors")
    names = [f"adapter_model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    index = {"weight_map": {f"tensor{number}": name for number, name in enumerate(names)}}
    (directory / "adapter_model.safetensors.index.json").write_text(json.dumps(index))
    files = [*names, "adapter_config.json", "adapter_model.safetensors.index.json"]
    worker = content_digest({name: (directory / name).read_bytes() for name in files})
    assert await resolved_digest(directory) == worker
