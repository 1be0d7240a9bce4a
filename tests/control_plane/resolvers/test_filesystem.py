"""The filesystem resolver: what it accepts, what it refuses and how it says so."""

import asyncio
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from control_plane.errors import Refused, SourceUnavailable
from control_plane.resolvers.filesystem import FilesystemResolver
from control_plane.resolvers.safetensors_header import MAX_HEADER_BYTES
from control_plane.resolvers.types import ResolveRequest
from tests.control_plane.adapter_files import rewrite_header, write_adapter

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    return root


@pytest.fixture
def adapter(root: Path) -> Path:
    return write_adapter(root / "acme" / "bot")


@pytest.fixture
def resolver(root: Path) -> FilesystemResolver:
    return FilesystemResolver([root])


def request(source: object = "") -> ResolveRequest:
    return ResolveRequest(tenant="acme", name="bot", source=str(source))


async def run(command: str, directory: Path) -> str:
    process = await asyncio.create_subprocess_shell(command, cwd=directory, stdout=asyncio.subprocess.PIPE)
    printed, _ = await process.communicate()
    return printed.decode()


async def test_an_adapter_is_found_by_path_by_uri_and_by_name(
    resolver: FilesystemResolver, adapter: Path
) -> None:
    by_path = await resolver.resolve(request(adapter))
    assert by_path is not None
    assert by_path.uri == str(adapter)
    assert by_path.rank == 4
    assert by_path.target_modules == ("q_proj",)
    assert by_path.size_bytes == (adapter / WEIGHTS).stat().st_size
    assert by_path.base_model_hint == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert await resolver.resolve(request(f"file://{adapter}")) == by_path
    assert await resolver.resolve(request()) == by_path


async def test_the_digest_is_what_sha256sum_prints(resolver: FilesystemResolver, adapter: Path) -> None:
    printed = await run(f"sha256sum {CONFIG} {WEIGHTS} | sha256sum", adapter)
    resolved = await resolver.resolve(request())
    assert resolved is not None
    assert resolved.digest == f"sha256:{printed.split()[0]}"


async def test_shards_are_read_through_their_index(resolver: FilesystemResolver, adapter: Path) -> None:
    shards = [f"adapter_model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for shard in shards:
        write_adapter(adapter, weights=shard)
    (adapter / WEIGHTS).unlink()
    index = adapter / "adapter_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": shards[0], "b": shards[1]}}))
    printed = await run(
        f"sha256sum {shards[0]} {shards[1]} {index.name} {CONFIG} | LC_ALL=C sort -k2 | sha256sum", adapter
    )
    resolved = await resolver.resolve(request())
    assert resolved is not None
    assert resolved.digest == f"sha256:{printed.split()[0]}"
    assert resolved.size_bytes == sum((adapter / shard).stat().st_size for shard in shards)


async def test_the_rank_is_the_largest_of_any_module(resolver: FilesystemResolver, root: Path) -> None:
    write_adapter(root / "acme" / "bot", rank_pattern={"q_proj": 24, "k_proj": 2})
    resolved = await resolver.resolve(request())
    assert resolved is not None
    assert resolved.rank == 24


@pytest.mark.parametrize(
    "source", ["", "relative/path", "s3://bucket/bot", "hf://owner/bot", "file://host/bot"]
)
async def test_what_is_not_there_or_not_a_local_path_is_left_to_others(
    resolver: FilesystemResolver, source: str
) -> None:
    assert await resolver.resolve(request(source)) is None


def change_config(**change: object) -> Callable[[Path], object]:
    def change_it(adapter: Path) -> None:
        config = json.loads((adapter / CONFIG).read_text())
        (adapter / CONFIG).write_text(json.dumps(config | change))

    return change_it


def truncate(adapter: Path) -> None:
    content = (adapter / WEIGHTS).read_bytes()
    (adapter / WEIGHTS).write_bytes(content[:-100])


def only_pickled(adapter: Path) -> None:
    (adapter / WEIGHTS).rename(adapter / "adapter_model.bin")


def huge_header(adapter: Path) -> None:
    with (adapter / WEIGHTS).open("wb") as file:
        file.write((MAX_HEADER_BYTES + 1).to_bytes(8, "little"))
        file.truncate(MAX_HEADER_BYTES * 2)  # sparse


def index_that_escapes(adapter: Path) -> None:
    (adapter / WEIGHTS).unlink()
    (adapter / f"{WEIGHTS}.index.json").write_text('{"weight_map": {"a": "../x.safetensors"}}')


def index_without_its_shard(adapter: Path) -> None:
    (adapter / WEIGHTS).unlink()
    (adapter / f"{WEIGHTS}.index.json").write_text('{"weight_map": {"a": "gone.safetensors"}}')


def fifo(adapter: Path) -> None:
    (adapter / WEIGHTS).unlink()
    os.mkfifo(adapter / WEIGHTS)


def directory_for_weights(adapter: Path) -> None:
    (adapter / WEIGHTS).unlink()
    (adapter / WEIGHTS).mkdir()


def empty_header(adapter: Path) -> None:
    (adapter / WEIGHTS).write_bytes((2).to_bytes(8, "little") + b"{}")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda adapter: (adapter / CONFIG).unlink(), "has no adapter_config.json"),
        (lambda adapter: (adapter / CONFIG).write_text("{"), "adapter_config.json is no JSON"),
        (lambda adapter: (adapter / CONFIG).write_text("[]"), "must hold a JSON object, not list"),
        (lambda adapter: (adapter / CONFIG).write_text("[" * 100_000), "is no JSON"),
        (change_config(peft_type="IA3"), "peft_type is 'IA3', only 'LORA'"),
        (change_config(r=0), "r must be a positive integer, not 0"),
        (change_config(r=True), "r must be a positive integer, not True"),
        (change_config(r="8"), "r must be a positive integer, not '8'"),
        (change_config(rank_pattern={"q": -1}), r"rank_pattern\['q'\] must be a positive integer, not -1"),
        (change_config(target_modules=[1]), "target_modules must be"),
        (change_config(base_model_name_or_path=7), "base_model_name_or_path must be a string"),
        (lambda adapter: (adapter / WEIGHTS).unlink(), "has no adapter_model.safetensors"),
        (only_pickled, "has only adapter_model.bin, which can run code"),
        (truncate, "is truncated or damaged: 412 bytes of tensors, header says 512"),
        (lambda adapter: (adapter / WEIGHTS).write_bytes(b""), "is truncated or no safetensors file"),
        (lambda adapter: (adapter / WEIGHTS).write_bytes(os.urandom(10 << 20)), "no safetensors file"),
        (huge_header, f"a header of {MAX_HEADER_BYTES + 1} bytes is over the limit"),
        (empty_header, "holds no tensor"),
        (lambda adapter: rewrite_header(adapter / WEIGHTS, dtype="I8"), "has the dtype I8, served are F64"),
        (lambda adapter: rewrite_header(adapter / WEIGHTS, shape=[4, 99]), "needs 1584 bytes, its offsets"),
        (lambda adapter: rewrite_header(adapter / WEIGHTS, shape=[-4, -16]), r"has the shape \[-4, -16\]"),
        (lambda adapter: rewrite_header(adapter / WEIGHTS, data_offsets=[8, 264]), "expected"),
        (lambda adapter: rewrite_header(adapter / WEIGHTS, data_offsets="x"), "lacks dtype, shape or"),
        (index_that_escapes, r"names the weight file '\.\./x\.safetensors'"),
        (index_without_its_shard, "has no gone.safetensors, which its index names"),
        (fifo, "is no regular file"),
        (directory_for_weights, "is no regular file"),
    ],
)
async def test_a_broken_adapter_is_refused_by_what_and_why(
    resolver: FilesystemResolver, adapter: Path, spoil: Callable[[Path], object], reason: str
) -> None:
    spoil(adapter)
    with pytest.raises(Refused, match=reason) as refusal:
        await resolver.resolve(request())
    assert str(adapter) in str(refusal.value)


async def test_a_path_outside_the_roots_is_refused_whether_it_exists_or_not(
    resolver: FilesystemResolver, root: Path, tmp_path: Path
) -> None:
    outside = write_adapter(tmp_path / "outside")
    for source in (outside, tmp_path / "missing", root / ".." / "outside", "/etc/passwd", f"{root}-suffix"):
        with pytest.raises(Refused, match="is outside the allowed adapter roots"):
            await resolver.resolve(request(source))


async def test_a_symlinked_directory_out_of_the_roots_is_refused(
    resolver: FilesystemResolver, root: Path, tmp_path: Path
) -> None:
    outside = write_adapter(tmp_path / "outside")
    (root / "link").symlink_to(outside)
    with pytest.raises(Refused, match="is outside the allowed adapter roots"):
        await resolver.resolve(request(root / "link"))


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
async def test_a_symlinked_file_out_of_the_roots_is_refused(
    resolver: FilesystemResolver, adapter: Path, tmp_path: Path, name: str
) -> None:
    outside = write_adapter(tmp_path / "outside")
    (adapter / name).unlink()
    (adapter / name).symlink_to(outside / name)
    with pytest.raises(Refused, match="is outside the allowed adapter roots"):
        await resolver.resolve(request())


async def test_a_symlink_within_the_roots_is_followed_and_the_source_is_canonical(
    resolver: FilesystemResolver, adapter: Path, root: Path
) -> None:
    (root / "latest").symlink_to(adapter)
    resolved = await resolver.resolve(request(root / "latest"))
    assert resolved is not None
    assert resolved.uri == str(adapter)


async def test_a_symlink_loop_is_an_error_of_the_source(resolver: FilesystemResolver, adapter: Path) -> None:
    (adapter / WEIGHTS).unlink()
    (adapter / WEIGHTS).symlink_to(adapter / WEIGHTS)
    with pytest.raises(SourceUnavailable, match="cannot be read"):
        await resolver.resolve(request())


async def test_the_event_loop_runs_while_a_large_adapter_is_hashed(
    resolver: FilesystemResolver, root: Path
) -> None:
    write_adapter(root / "acme" / "bot", rank=250_000)  # 32 MB
    reading = asyncio.create_task(resolver.resolve(request()))
    num_turns = 0
    while not reading.done():
        await asyncio.sleep(0)
        num_turns += 1
    assert reading.result() is not None
    assert num_turns > 10  # a read on the loop would take exactly one or two


async def test_a_confined_request_reads_its_tenants_directory_and_no_others(
    resolver: FilesystemResolver, root: Path, adapter: Path
) -> None:
    others = write_adapter(root / "globex" / "bot")
    confined = ResolveRequest(tenant="acme", name="bot", source=str(adapter), confined=True)
    assert (await resolver.resolve(confined)) is not None
    for source in (others, root / "acme" / ".." / "globex" / "bot"):
        with pytest.raises(Refused, match="kept for 'acme'"):
            await resolver.resolve(replace(confined, source=str(source)))


async def test_a_link_does_not_lead_a_confined_request_to_another_tenant(
    resolver: FilesystemResolver, root: Path, adapter: Path
) -> None:
    write_adapter(root / "globex" / "bot")
    (root / "acme" / "link").symlink_to(root / "globex" / "bot")
    confined = ResolveRequest(tenant="acme", name="bot", source=str(root / "acme" / "link"), confined=True)
    with pytest.raises(Refused, match="kept for 'acme'"):
        await resolver.resolve(confined)


@pytest.mark.parametrize("source", ["/a\0b", "file:///a%00b"])
async def test_a_path_with_a_character_names_no_path_can_have_is_refused(
    resolver: FilesystemResolver, source: str
) -> None:
    with pytest.raises(Refused, match="NUL"):
        await resolver.resolve(request(source))


@pytest.mark.parametrize("tail", ["x" * 300, "x/" * 4000])
async def test_a_path_that_is_too_long_for_the_disk_is_not_there(
    resolver: FilesystemResolver, root: Path, tail: str
) -> None:
    assert await resolver.resolve(request(root / tail)) is None


async def test_a_source_that_is_no_uri_is_left_to_others(resolver: FilesystemResolver) -> None:
    assert await resolver.resolve(request("file://[")) is None
