"""Every broken adapter is refused with what and why; every valid form is read alike."""

import json
import os
import shutil
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from data_plane.adapters.files import AdapterDirectory
from data_plane.adapters.packing import PackedLora
from data_plane.errors import AdapterRefused, AdapterUnreadable
from tests.data_plane.world import World, source_of
from tests.tiny import make_adapter, make_model

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
Q_PROJ = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture
def adapter(world: World, tmp_path: Path) -> Path:
    """A copy of the narrow adapter (rank 3 on q and v) that a test may break."""
    return Path(shutil.copytree(world.adapters["narrow"], tmp_path / "adapter"))


@pytest.fixture
def read(world: World, tmp_path: Path) -> Callable[[Path], PackedLora]:
    reader = replace(world.runtime.reader, roots=(tmp_path, *world.runtime.reader.roots))
    return lambda directory: reader.read(source_of(directory))


def set_options(adapter: Path, **options: object) -> None:
    config = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps(config | options))


def change_tensors(adapter: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(adapter / WEIGHTS)
    change(tensors)
    save_file(tensors, adapter / WEIGHTS)


def same(one: PackedLora, other: PackedLora) -> bool:
    pairs = zip(one.modules, other.modules, strict=True)
    return one.ranks == other.ranks and all(
        (a is None) == (b is None) and (a is None or (torch.equal(a.a, b.a) and torch.equal(a.b, b.b)))
        for a, b in pairs
    )


# Forms that are read.


def test_scaling_is_merged_once_and_b_is_transposed(adapter: Path, read):
    packed = read(adapter)
    tensors = load_file(adapter / WEIGHTS)
    module = packed.modules[0]  # q, k, v of layer 0
    assert module is not None
    assert module.ranks == (3, 0, 3)
    assert torch.equal(module.a[:, 0], tensors[f"{Q_PROJ}.lora_A.weight"])
    assert torch.equal(module.b[:, :64], 2.0 * tensors[f"{Q_PROJ}.lora_B.weight"].t())
    assert (packed.rank, packed.num_pages) == (3, 1)
    assert packed.num_bytes == sum(m.a.nbytes + m.b.nbytes for m in packed.modules if m)


def test_keys_without_the_peft_prefix_are_the_same_adapter(adapter: Path, read):
    expected = read(adapter)

    def strip(tensors: dict[str, torch.Tensor]) -> None:
        for key in list(tensors):
            tensors[key.removeprefix("base_model.model.")] = tensors.pop(key)

    change_tensors(adapter, strip)
    assert same(read(adapter), expected)


def test_sharded_files_are_the_same_adapter(adapter: Path, read):
    expected = read(adapter)
    tensors = load_file(adapter / WEIGHTS)
    (adapter / WEIGHTS).unlink()
    shards = {"adapter_model-00001-of-00002.safetensors": 0, "adapter_model-00002-of-00002.safetensors": 1}
    weight_map = {}
    for name, parity in shards.items():
        part = {key: tensor for i, (key, tensor) in enumerate(tensors.items()) if i % 2 == parity}
        save_file(part, adapter / name)
        weight_map |= dict.fromkeys(part, name)
    (adapter / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert same(read(adapter), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": r".*\.(q|v)_proj"},
        {"target_modules": ["model.layers.0.self_attn.q_proj", "1.self_attn.q_proj", "self_attn.v_proj"]},
        {"target_modules": "all-linear", "exclude_modules": r".*(k_proj|o_proj|mlp.*)"},
        {"target_modules": ["q_proj", "v_proj", "o_proj"], "exclude_modules": ["o_proj"]},
        {"layers_to_transform": [0, 1], "layers_pattern": "layers"},
        {"layers_to_transform": [0, 1]},
        {"fan_in_fan_out": True},
    ],
)
def test_targets_may_be_written_in_every_way_of_peft(adapter: Path, read, options: dict):
    expected = read(adapter)
    set_options(adapter, **options)
    assert same(read(adapter), expected)


def test_half_precision_files_are_read_and_scaled_in_fp32(adapter: Path, read):
    set_options(adapter, lora_alpha=1)
    change_tensors(adapter, lambda tensors: tensors.update({k: t.bfloat16() for k, t in tensors.items()}))
    b = load_file(adapter / WEIGHTS)[f"{Q_PROJ}.lora_B.weight"]
    assert torch.equal(read(adapter).modules[0].b[:, :64], b.t().float() * (1 / 3))


def test_the_digest_is_that_of_sha256sum(adapter: Path, read):
    source = source_of(adapter)
    command = f"cd {adapter} && sha256sum {CONFIG} {WEIGHTS} | sha256sum"
    assert source.revision.digest == "sha256:" + os.popen(command).read().split()[0]
    assert read(adapter).rank == 3


def test_a_file_uri_is_a_path(adapter: Path, world: World, tmp_path: Path):
    spaced = adapter.rename(tmp_path / "a b")
    source = source_of(spaced, uri=f"file://{tmp_path}/a%20b")
    assert replace(world.runtime.reader, roots=(tmp_path,)).read(source).rank == 3


# Files that are refused, with what the message must name.


def write(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda adapter: (adapter / name).write_bytes(data)


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    return lambda adapter: change_tensors(adapter, change)


def options(**values: object) -> Callable[[Path], object]:
    return lambda adapter: set_options(adapter, **values)


def truncate(adapter: Path) -> None:
    (adapter / WEIGHTS).write_bytes((adapter / WEIGHTS).read_bytes()[:-100])


def into_bin(adapter: Path) -> None:
    torch.save(load_file(adapter / WEIGHTS), adapter / "adapter_model.bin")
    (adapter / WEIGHTS).unlink()


def poison(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{Q_PROJ}.lora_A.weight"][1, 2] = float("nan")


def second_key(tensors: dict[str, torch.Tensor]) -> None:
    name = f"{Q_PROJ}.lora_A.weight"
    tensors[name.removeprefix("base_model.model.")] = tensors[name].clone()


def link_out(adapter: Path) -> None:
    outside = adapter.parent.parent / f"{adapter.parent.name}-secret.json"
    shutil.move(adapter / CONFIG, outside)
    (adapter / CONFIG).symlink_to(outside)


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated file": (truncate, f"{WEIGHTS} is not a whole safetensors file"),
    "garbage": (write(WEIGHTS, os.urandom(1 << 20)), f"{WEIGHTS} is not a whole safetensors file"),
    "too large": (write(WEIGHTS, bytes(40 << 20)), "has 41943040 bytes, at most"),
    "empty file": (write(WEIGHTS, b""), f"{WEIGHTS} is not a whole safetensors file"),
    "config is no JSON": (write(CONFIG, b"{"), f"{CONFIG} is not JSON"),
    "config is no object": (write(CONFIG, b"[]"), f"{CONFIG} is not a JSON object"),
    "config is no text": (write(CONFIG, b"\xff\xfe\x00"), f"{CONFIG} is not JSON"),
    "config is deep": (write(CONFIG, b"[" * 100_000), f"{CONFIG} is not JSON"),
    "bin": (into_bin, "adapter_model.bin can run code"),
    "unknown tensor": (
        tensors(lambda t: t.update({"base_model.model.model.layers.7.mlp.up.lora_A.weight": torch.ones(1)})),
        "the base model has no module model.layers.7.mlp.up",
    ),
    "other kind of tensor": (
        tensors(lambda t: t.update({f"{Q_PROJ}.lora_magnitude_vector": torch.ones(1)})),
        f"tensor {Q_PROJ}.lora_magnitude_vector: only lora_A.weight and lora_B.weight are expected",
    ),
    "untargeted tensor": (options(target_modules=["q_proj"]), "v_proj is not among target_modules"),
    "wrong shape": (
        tensors(lambda t: t.update({f"{Q_PROJ}.lora_A.weight": torch.ones(3, 65)})),
        rf"tensor {Q_PROJ}.lora_A.weight: shape \[3, 65\], expected \[3, 64\]",
    ),
    "scalar": (
        tensors(lambda t: t.update({f"{Q_PROJ}.lora_A.weight": torch.ones(())})),
        r"shape \[\], expected",
    ),
    "rank of another config": (options(r=4), r"shape \[.*\], expected \[.*4.*\]"),
    "integer tensor": (
        tensors(lambda t: t.update({f"{Q_PROJ}.lora_A.weight": torch.ones(3, 64, dtype=torch.int32)})),
        "dtype torch.int32",
    ),
    "missing partner": (
        tensors(lambda t: t.pop(f"{Q_PROJ}.lora_B.weight")),
        "tensor model.layers.0.self_attn.q_proj.lora_B.weight is missing",
    ),
    "module without tensors": (
        options(target_modules=["q_proj", "v_proj", "k_proj"]),
        "model.layers.0.self_attn.k_proj: named by target_modules or modules_to_save, but the files have no",
    ),
    "tensor twice": (tensors(second_key), "has a second lora_A"),
    "not finite": (
        tensors(poison),
        r"tensor model.layers.0.self_attn.q_proj.lora_A.weight: has values that are not finite",
    ),
    "rank too high": (options(r=64), "q_proj: rank 64 is above max_lora_rank 16"),
    "rank too high by pattern": (
        options(rank_pattern={"v_proj": 17}),
        "v_proj: rank 17 is above max_lora_rank 16",
    ),
    "rank zero": (options(r=0), "r 0 must be a whole number of at least 1"),
    "rank is a text": (options(r="8"), "r '8' must be a whole number"),
    "alpha is huge": (options(lora_alpha=10**400), "lora_alpha .* must be a number"),
    "unknown option": (options(use_magic=True), "option 'use_magic' is unknown"),
    "dora without its vectors": (
        options(use_dora=True),
        "tensor model.layers.0.self_attn.q_proj.lora_magnitude_vector is missing",
    ),
    "lora_bias without biases": (
        options(lora_bias=True),
        "tensor model.layers.0.self_attn.q_proj.lora_B.bias is missing",
    ),
    "dora with lora_bias": (
        options(use_dora=True, lora_bias=True),
        "lora_bias=True is not supported together with use_dora=True",
    ),
    "flag is a text": (options(use_dora="yes"), "use_dora 'yes' must be true or false"),
    "bias": (options(bias="all"), "bias='all' is not supported"),
    "saved module without its matrix": (
        options(modules_to_save=["lm_head"]),
        "lm_head: named by target_modules or modules_to_save, but the files have no tensors",
    ),
    "saved norm": (
        options(modules_to_save=["norm"]),
        r"modules_to_save 'norm' is not supported: .* \(model.embed_tokens and lm_head\)",
    ),
    "saved classifier": (options(modules_to_save=["score"]), "modules_to_save 'score' is not supported"),
    "saved without a name": (options(modules_to_save=[""]), "modules_to_save has an empty name"),
    "trained tokens": (
        options(trainable_token_indices=[5]),
        r"trainable_token_indices=\[5\] is not supported",
    ),
    "vocabulary of its own": (
        write("new_embeddings.safetensors", b""),
        "new_embeddings.safetensors: lora_extra_vocab_size is not supported",
    ),
    "pissa": (options(init_lora_weights="pissa"), "init_lora_weights='pissa' changes the base weights"),
    "other method": (options(peft_type="IA3"), "peft_type 'IA3' is not LORA"),
    "bad regex": (options(target_modules="(q_proj"), r"'\(q_proj' is not a regular expression"),
    "no targets": (options(target_modules=[]), "target_modules names no module"),
    "targets of a wrong type": (
        options(target_modules=[1]),
        r"target_modules \[1\] must be a string or a list",
    ),
    "link out of the roots": (link_out, f"{CONFIG} is outside of adapter_roots"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_broken_adapter_is_refused_and_the_message_names_what_and_why(adapter: Path, read, case: str):
    break_it, message = REFUSED[case]
    break_it(adapter)
    with pytest.raises(AdapterRefused, match=message):
        read(adapter)


def test_a_pipe_is_refused_without_waiting_for_its_writer(adapter: Path, world: World, tmp_path: Path):
    source = source_of(adapter)
    (adapter / WEIGHTS).unlink()
    os.mkfifo(adapter / WEIGHTS)
    with pytest.raises(AdapterRefused, match="is not a regular file"):
        replace(world.runtime.reader, roots=(tmp_path,)).read(source)


def test_an_adapter_of_another_base_model_is_refused(world: World, tmp_path: Path, read):
    other = make_model(tmp_path / "other", hidden_size=32)
    with pytest.raises(AdapterRefused, match=r"tensor .*: shape .*, expected .*"):
        read(make_adapter(tmp_path / "foreign", other, seed=0))


def test_other_bytes_than_the_registered_ones_are_refused(adapter: Path, world: World, tmp_path: Path):
    source = source_of(adapter)
    change_tensors(adapter, lambda t: t[f"{Q_PROJ}.lora_A.weight"].add_(1))
    with pytest.raises(AdapterRefused, match=r"digest .* expected sha256:"):
        replace(world.runtime.reader, roots=(tmp_path,)).read(source)


@pytest.mark.parametrize("uri", ["/etc", "relative/path", "s3://bucket/adapter", "file://host/x", "/a\0b"])
def test_a_path_outside_of_the_roots_is_refused(adapter: Path, world: World, tmp_path: Path, uri: str):
    with pytest.raises(AdapterRefused, match=r"outside of adapter_roots|absolute path|reads directories"):
        replace(world.runtime.reader, roots=(tmp_path,)).read(source_of(adapter, uri=uri))


def test_a_directory_that_links_out_of_the_roots_is_refused(adapter: Path, world: World, tmp_path: Path):
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(adapter)
    for uri in (str(root / "link"), f"{root}/../adapter"):
        with pytest.raises(AdapterRefused, match="outside of adapter_roots"):
            replace(world.runtime.reader, roots=(root,)).read(source_of(adapter, uri=uri))


def test_a_directory_that_becomes_a_link_after_it_was_checked_is_refused(adapter: Path, tmp_path: Path):
    root = tmp_path / "root"
    root.mkdir()
    inside = Path(shutil.copytree(adapter, root / "adapter"))
    directory = AdapterDirectory(str(inside), (root,))
    shutil.rmtree(inside)
    inside.symlink_to(adapter)
    with pytest.raises(AdapterRefused, match="became a link"):
        directory.names()
    with pytest.raises(AdapterRefused, match="outside of adapter_roots"):
        directory.read(CONFIG, max_bytes=1 << 20)


def test_links_inside_the_roots_are_followed(adapter: Path, read):
    blob = adapter.parent / "blob"
    shutil.move(adapter / WEIGHTS, blob)
    (adapter / WEIGHTS).symlink_to(blob)
    assert read(adapter).rank == 3


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_missing_file_may_appear_later(adapter: Path, world: World, tmp_path: Path, name: str):
    source = source_of(adapter)
    (adapter / name).unlink()
    with pytest.raises(AdapterUnreadable, match=f"{name} does not exist"):
        replace(world.runtime.reader, roots=(tmp_path,)).read(source)


def test_a_missing_directory_may_appear_later(world: World, adapter: Path, tmp_path: Path):
    source = source_of(adapter)
    shutil.rmtree(adapter)
    with pytest.raises(AdapterUnreadable, match="does not exist"):
        replace(world.runtime.reader, roots=(tmp_path,)).read(source)


def test_bin_is_read_when_the_operator_opts_in(adapter: Path, world: World, tmp_path: Path, read):
    expected = read(adapter)
    into_bin(adapter)
    reader = replace(world.runtime.reader, roots=(tmp_path,), allow_bin=True)
    assert same(reader.read(source_of(adapter)), expected)


def test_values_that_the_lora_dtype_cannot_hold_are_refused(adapter: Path, world: World, tmp_path: Path):
    set_options(adapter, lora_alpha=1e8)
    packer = replace(world.runtime.reader.packer, dtype=torch.float16)
    reader = replace(world.runtime.reader, roots=(tmp_path,), packer=packer)
    with pytest.raises(
        AdapterRefused, match=r"q_proj.lora_B.weight: has values that torch.float16 cannot hold"
    ):
        reader.read(source_of(adapter))


def test_a_small_file_takes_a_small_buffer_however_large_it_might_be(tmp_path: Path):
    (tmp_path / CONFIG).write_bytes(bytes(100))
    directory = AdapterDirectory(str(tmp_path), (tmp_path,))
    tracemalloc.start()
    try:
        assert len(directory.read(CONFIG, max_bytes=1 << 30)) == 100
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_file_that_grows_while_it_is_read_may_be_tried_again():
    # Files of /proc say that they are empty, and are not.
    directory = AdapterDirectory(f"/proc/{os.getpid()}", (Path("/proc"),))
    with pytest.raises(AdapterUnreadable, match="status grew while it was read"):
        directory.read("status", max_bytes=1 << 20)
