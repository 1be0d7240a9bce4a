"""The GPU's path on a CPU: stand-ins do what only a GPU has, everything else is what serves."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from structlog.testing import capture_logs

from data_plane.config import EngineConfig
from data_plane.engine import cuda_platform
from data_plane.engine.cuda_platform import CudaPlatform
from data_plane.engine.runtime import Runtime, build_runtime
from data_plane.errors import InvalidRequest
from kernels.gpu import attention as gpu_attention
from kernels.lora.triton.ends import library
from tests.data_plane.batch_driver import Sequence, logits, step
from tests.data_plane.world import ALL, source_of, tiny_config
from tests.kernels.gpu.stand_ins import (
    BufferedDevice,
    RerunRecorder,
    TableEndOps,
    TableLoraOps,
    documented_varlen_attn,
    plain_write_kv,
)
from tests.tiny import make_adapter, make_model

TOTAL_BYTES = 1 << 31


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("gpu")
    base = make_model(root / "base")
    make_adapter(root / "wide", base, seed=1, target_modules=ALL)
    make_adapter(root / "dora", base, seed=2, rank=3, target_modules=ALL, use_dora=True)
    make_adapter(root / "biased", base, seed=3, target_modules=ALL, lora_bias=True)
    ends = ("embed_tokens", "lm_head")
    make_adapter(root / "ends", base, seed=4, target_modules=("q_proj", *ends))
    make_adapter(root / "dora_ends", base, seed=5, rank=3, target_modules=ends, use_dora=True)
    own_matrices(make_adapter(root / "own", base, seed=6, modules_to_save=list(ends)))
    return root


def own_matrices(adapter: Path) -> None:
    """Other numbers than the base's, which PEFT saves."""
    file, generator = adapter / "adapter_model.safetensors", torch.Generator().manual_seed(7)
    tensors = load_file(file)
    saved = [name for name in tensors if "lora_" not in name]
    assert len(saved) == 2
    for name in saved:
        tensors[name] += torch.randn(tensors[name].shape, generator=generator) / 4
    save_file(tensors, file)


@pytest.fixture
def _stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """fp32 everywhere, so that every path gives the same tokens."""
    monkeypatch.setattr(gpu_attention, "varlen_attn", documented_varlen_attn)
    monkeypatch.setattr(gpu_attention, "write_kv", plain_write_kv)
    monkeypatch.setattr(gpu_attention, "DTYPES", (torch.float32,))
    monkeypatch.setattr(cuda_platform, "DTYPES", (torch.float32,))
    monkeypatch.setattr(cuda_platform, "TritonLoraOps", TableLoraOps)
    monkeypatch.setattr(cuda_platform, "TritonEndOps", TableEndOps)


def config(root: Path, **overrides: Any) -> EngineConfig:
    return tiny_config(root / "base", root, max_num_seqs=12, **({"cpu_kernels": "torch"} | overrides))


def made(settings: EngineConfig, device: BufferedDevice, recorder: RerunRecorder) -> Runtime:
    platform = CudaPlatform(settings, device, TOTAL_BYTES, make_recorder=lambda: recorder)
    return load(build_runtime(settings, platform), settings)


def load(
    runtime: Runtime, settings: EngineConfig, names: tuple[str, ...] = ("wide", "dora", "biased")
) -> Runtime:
    for slot, name in enumerate(names):
        packed = runtime.reader.read(source_of(settings.adapter_roots[0] / name))
        pages = (2 * slot, 2 * slot + 1)[: packed.num_pages]
        runtime.rank_pool.bind(slot, pages, runtime.rank_pool.write(pages, packed))
    return runtime


def sides(runtime: Runtime) -> list[torch.Tensor]:
    slots = runtime.rank_pool.slots
    bound = [rows.side for slot in slots.sided if (rows := slots.rows[slot]) and rows.side]
    changes = [change for side in bound for change in (*side.affines, side.embedding, side.head)]
    return [tensor for change in changes if change for tensor in change.tensors() if tensor is not None]


def batch(num_sequences: int, *, adapters: bool = True) -> list[Sequence]:
    """Of all slots and none; prompts of 1 to 9 tokens, some in chunks."""
    slots = (0, None, 1, 2) if adapters else (None,)
    return [
        Sequence(
            i, [7 + i + j for j in range(1 + i % 9)], slots[i % len(slots)], (3 * i, 3 * i + 1, 3 * i + 2), 4
        )
        for i in range(num_sequences)
    ]


def outputs(runtime: Runtime, sequences: list[Sequence], num_steps: int = 6) -> list[list[int]]:
    for _ in range(num_steps):
        step(runtime, sequences)
    return [sequence.output for sequence in sequences]


@pytest.mark.usefixtures("_stand_ins")
@pytest.mark.parametrize("adapters", [True, False])
@pytest.mark.parametrize("num_sequences", [1, 3, 11])
def test_graphs_eager_steps_and_the_cpu_give_the_same_tokens(root: Path, num_sequences: int, adapters: bool):
    settings = config(root)
    found = {}
    recorder, device = RerunRecorder(), BufferedDevice()
    found["graphs"] = outputs(made(settings, device, recorder), batch(num_sequences, adapters=adapters))
    assert recorder.recorded == 2 * len((1, 2, 4, 8, 16))
    assert recorder.replays > 0
    eager = config(root, enforce_eager=True)
    found["eager"] = outputs(made(eager, BufferedDevice(), recorder), batch(num_sequences, adapters=adapters))
    cpu = config(root, device="cpu")
    found["cpu"] = outputs(load(build_runtime(cpu), cpu), batch(num_sequences, adapters=adapters))
    assert found["graphs"] == found["cpu"]
    assert found["eager"] == found["cpu"]


@pytest.mark.usefixtures("_stand_ins")
def test_a_step_is_one_transfer_and_a_decode_of_known_size_one_replay(root: Path):
    recorder, device = RerunRecorder(), BufferedDevice()
    runtime, sequences = made(config(root), device, recorder), batch(3)
    step(runtime, sequences)
    for _ in range(3):  # the prompts' chunks have ended
        uploads, replays = device.uploads, recorder.replays
        step(runtime, sequences)
        assert device.uploads == uploads + 1
    assert recorder.replays == replays + 1


@pytest.mark.usefixtures("_stand_ins")
def test_padding_writes_nowhere_but_into_the_scratch_block(root: Path):
    runtime = made(config(root), BufferedDevice(), RerunRecorder())
    sequences = batch(3)
    outputs(runtime, sequences, 3)
    kv = runtime.runner._model._parts.kv
    assert kv.num_blocks == runtime.num_blocks + 1
    used = {block for sequence in sequences for block in sequence.blocks}
    for layer in kv.layers:
        for cache in layer:
            written = set(cache.flatten(1).any(1).nonzero()[:, 0].tolist())
            assert written - {runtime.num_blocks} <= used


ENDS = ("ends", "dora_ends", "own")


@pytest.mark.usefixtures("_stand_ins")
@pytest.mark.parametrize("enforce_eager", [False, True])
def test_adapters_that_change_an_end_take_graphs_too_and_give_the_cpus_tokens(
    root: Path, enforce_eager: bool
):
    recorder, settings = RerunRecorder(), config(root, enforce_eager=enforce_eager)
    device, cpu = BufferedDevice(), config(root, device="cpu")
    on_gpu, on_cpu = made(settings, device, recorder), load(build_runtime(cpu), cpu)
    # One after the other in the same slots: a graph finds what is bound now.
    for names in (ENDS, ENDS[::-1], ("wide", "dora", "own")):
        load(on_gpu, settings, names)
        replays, uploads = recorder.replays, device.uploads
        found = outputs(on_gpu, batch(7))
        assert device.uploads == uploads + 6, "one transfer a step"
        assert enforce_eager or recorder.replays > replays
        assert found == outputs(load(on_cpu, cpu, names), batch(7))
    assert found != outputs(load(on_cpu, cpu, ENDS), batch(7)), "adapters of the ends change the tokens"


@pytest.mark.usefixtures("_stand_ins")
def test_a_slot_whose_adapter_is_gone_leaves_both_ends_as_the_base_has_them(root: Path):
    settings = config(root)
    runtime = load(made(settings, BufferedDevice(), RerunRecorder()), settings, ENDS)
    outputs(runtime, batch(7))
    for slot in range(3):
        runtime.rank_pool.unbind(slot)
    assert outputs(runtime, batch(7)) == outputs(runtime, [without_adapter(s) for s in batch(7)])


def without_adapter(sequence: Sequence) -> Sequence:
    return replace(sequence, slot=None)


@pytest.mark.usefixtures("_stand_ins")
def test_without_adapters_half_of_the_graphs_are_recorded(root: Path):
    recorder = RerunRecorder()
    settings = config(root, enable_lora=False)
    runtime = build_runtime(
        settings, CudaPlatform(settings, BufferedDevice(), TOTAL_BYTES, make_recorder=lambda: recorder)
    )
    assert recorder.recorded == len((1, 2, 4, 8, 16))
    outputs(runtime, batch(3, adapters=False))
    assert recorder.replays > 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("names", [("wide", "dora", "biased"), ENDS, ()])
def test_a_step_on_a_device_mixes_no_devices_and_reads_nothing_back(
    root: Path, names: tuple[str, ...], dtype: str
):
    """On `meta` no number can be read and no operator takes a tensor of the host: with the real kernels'
    fake implementations in half precision, and with plain PyTorch in fp32."""
    settings = config(root, dtype=dtype, enforce_eager=True)
    platform = CudaPlatform(settings, BufferedDevice("meta"), TOTAL_BYTES, probe=lambda *_: None)
    # Read on the CPU: DoRA needs numbers of the base.
    reader = build_runtime(config(root, dtype=dtype, device="cpu")).reader
    runtime = load(replace(build_runtime(settings, platform), reader=reader), settings, names)
    assert bool(names) == bool(sides(runtime))
    assert all(side.device.type == "meta" for side in sides(runtime))
    for chunk_size in (4, 1):
        sequences = batch(5, adapters=bool(names))
        for sequence in sequences:
            sequence.chunk_size = chunk_size
        found = logits(runtime, sequences)
        assert (found.device.type, found.shape[1]) == ("meta", 257)


def test_a_graph_has_the_launches_of_both_ends_and_a_replay_reads_nothing_back(
    root: Path, monkeypatch: pytest.MonkeyPatch
):
    """On `meta` with the real kernels' fake implementations, recorded before any adapter is there."""
    launched: list[str] = []
    for name in ("end_lookup", "head_shrink", "head_expand", "head_product"):
        operator = getattr(library, name)
        monkeypatch.setattr(
            library, name, lambda *a, name=name, operator=operator: (launched.append(name), operator(*a))
        )
    recorder, settings = RerunRecorder(), config(root, dtype="bfloat16")
    platform = CudaPlatform(
        settings,
        BufferedDevice("meta"),
        TOTAL_BYTES,
        probe=lambda *_: None,
        make_recorder=lambda: recorder,
    )
    reader = build_runtime(config(root, dtype="bfloat16", device="cpu")).reader
    runtime = replace(build_runtime(settings, platform), reader=reader)
    assert Counter(launched) == dict.fromkeys(
        ("end_lookup", "head_shrink", "head_expand", "head_product"), recorder.recorded // 2
    )
    load(runtime, settings, ENDS)
    sequences = batch(3)
    for sequence in sequences:
        sequence.chunk_size = 1
    replays = recorder.replays
    assert logits(runtime, sequences).device.type == "meta"
    assert recorder.replays == replays + 1


@pytest.mark.usefixtures("_stand_ins")
def test_a_definition_that_cannot_be_recorded_is_served_eagerly_with_the_reason(root: Path):
    class Broken(RerunRecorder):
        def record(self, work: Any) -> Any:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    with capture_logs() as lines:
        runtime = made(config(root), BufferedDevice(), Broken())
    (line,) = [line for line in lines if line["event"] == "gpu_graphs"]
    assert line["reason"] == "operation not permitted when stream is capturing"
    outputs(runtime, batch(2), 2)


def test_what_the_library_cannot_do_is_plain_pytorch_without_graphs_and_says_why(root: Path):
    with capture_logs() as lines:
        settings = config(root)  # fp32
        runtime = made(settings, BufferedDevice(), RerunRecorder())
    said = {line["event"]: (line["path"], line["reason"]) for line in lines if "path" in line}
    assert said["gpu_attention"][0] == "torch"
    assert said["gpu_attention"][1].startswith("varlen_attn cannot do torch.float32 (model.layers.0")
    assert said["gpu_lora"][0] == "torch"
    cpu = config(root, device="cpu")
    assert outputs(runtime, batch(5)) == outputs(load(build_runtime(cpu), cpu), batch(5))


def test_adapters_of_another_dtype_than_the_base_are_plain_pytorch(root: Path):
    settings = config(root, dtype="bfloat16", lora_dtype="float16", enforce_eager=True)
    with capture_logs() as lines:
        platform = CudaPlatform(settings, BufferedDevice("meta"), TOTAL_BYTES, probe=lambda *_: None)
        build_runtime(settings, platform)
    assert [(line["path"], line["reason"]) for line in lines if line["event"] == "gpu_lora"] == [
        ("torch", "the Triton kernels compute no adapters of torch.float16 on torch.bfloat16")
    ]


def test_a_probe_that_fails_names_the_block_size(root: Path):
    settings = config(root, dtype="bfloat16")
    with capture_logs() as lines:
        platform = CudaPlatform(settings, BufferedDevice(), TOTAL_BYTES, probe=lambda *_: "it refuses")
        platform.attention(_traced(settings), torch.bfloat16, 16)
    assert [line["reason"] for line in lines] == [
        "varlen_attn with block_size 16: it refuses (try a multiple of 256)"
    ]


def test_an_open_block_size_is_what_the_kernel_that_serves_takes(root: Path):
    settings = EngineConfig(**config(root).model_dump(include={"model"}))
    assert settings.block_size == 0, "left open"
    platform = CudaPlatform(settings, BufferedDevice(), TOTAL_BYTES, probe=lambda *_: "it refuses")
    found = _traced(settings)
    assert platform.block_size(found, torch.bfloat16) == 256
    assert platform.block_size(found, torch.float32) == 16, "plain PyTorch takes any"
    with capture_logs() as lines:
        platform.attention(found, torch.bfloat16, 256)
    assert [line["reason"] for line in lines] == ["varlen_attn with block_size 256: it refuses"]


@pytest.mark.usefixtures("_stand_ins")
def test_a_worker_whose_block_size_is_left_open_captures_graphs_and_gives_the_same_tokens(root: Path):
    recorder, settings = RerunRecorder(), config(root, block_size=0, kv_cache_bytes=64 << 20)
    runtime = made(settings, BufferedDevice(), recorder)
    assert (runtime.block_size, runtime.runner._model._parts.kv.block_size) == (256, 256)
    found = outputs(runtime, batch(3))
    assert recorder.replays > 0
    cpu = config(root, device="cpu")
    assert found == outputs(load(build_runtime(cpu), cpu), batch(3))


def _traced(settings: EngineConfig) -> Any:
    from data_plane.models.build import load_definition
    from data_plane.models.trace import trace

    return trace(load_definition(settings.model, torch.bfloat16))


def test_the_kv_cache_takes_what_is_left_of_the_share_unless_its_bytes_are_set(root: Path):
    free = 1 << 30
    fields = config(root).model_dump(include={"model", "max_loras"})
    for share, side, expected in ((0.75, 0, TOTAL_BYTES // 4), (0.75, 1 << 20, TOTAL_BYTES // 4 - (1 << 20))):
        settings = EngineConfig(**fields, gpu_memory_utilization=share, lora_side_bytes=side)
        platform = CudaPlatform(settings, BufferedDevice(), TOTAL_BYTES)
        assert free == platform.device.free_bytes()
        assert platform.kv_cache_bytes() == expected
    full = CudaPlatform(EngineConfig(**fields, gpu_memory_utilization=0.4), BufferedDevice(), TOTAL_BYTES)
    with pytest.raises(InvalidRequest, match=r"gpu_memory_utilization: 0\.4 leaves no KV cache"):
        full.kv_cache_bytes()
    assert CudaPlatform(config(root), BufferedDevice(), TOTAL_BYTES).kv_cache_bytes() == 1 << 20
