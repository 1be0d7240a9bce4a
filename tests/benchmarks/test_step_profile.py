import time
from pathlib import Path

import pytest

from data_plane.engine.sampler import Sampler
from kernels.cpu.native import PHASES
from tests.benchmarks.step_bench import StepBench
from tests.benchmarks.step_profile import REST, Stopwatch, break_down
from tests.kernels.cpu.implementations import kernels_at
from tests.tiny import make_model


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> StepBench:
    model = make_model(tmp_path_factory.mktemp("model"))
    bench = StepBench(model, max_loras=2, max_lora_rank=8, kv_cache_bytes=1 << 20, cpu_kernels="torch")
    packer = bench.runtime.reader.packer
    bench.place([packer.dummy(8), packer.dummy(4)])
    return bench


def test_every_part_of_a_step_is_seen(bench: StepBench):
    plan = bench.decodes(num_streams=3, context=20, num_adapters=2)
    parts = break_down(lambda: bench.seconds(plan)).parts_s
    assert parts.keys() >= {"linears", "LoRA", "attention", "head", "sampler", "inputs", REST}


def test_the_parts_add_up_to_the_work():
    took_s = []

    def work() -> None:
        began_s = time.perf_counter()
        Sampler(()).sample(_Logits(), [])
        took_s.append(time.perf_counter() - began_s)

    breakdown = break_down(work)
    assert breakdown.total_s >= took_s[-1] > breakdown.parts_s["sampler"] > 0


def test_a_part_leaves_out_the_parts_it_calls():
    stopwatch = Stopwatch(clock=iter(range(100)).__next__)
    inner = stopwatch.around("inner", lambda: None)
    outer = stopwatch.around("outer", inner)
    outer()
    # The clock ticks once at each border: before outer, before inner, after inner, after outer, at the end.
    assert stopwatch.stop(1).parts_s == {REST: 2, "outer": 2, "inner": 1}


def test_the_head_owns_what_it_calls():
    stopwatch = Stopwatch(clock=iter(range(100)).__next__)
    stopwatch.around("head", stopwatch.around("inner", lambda: None))()
    assert stopwatch.stop(1).parts_s == {REST: 2, "head": 1}


def test_a_part_may_be_told_apart_by_who_knows_it():
    stopwatch = Stopwatch(clock=iter(range(100)).__next__)
    stopwatch.around("layers", lambda: stopwatch.move(0.75, "attention"))()
    assert stopwatch.stop(1).parts_s == {REST: 2, "layers": 0.25, "attention": 0.75}


def test_the_phases_of_whole_layers_are_told_apart(tmp_path: Path):
    kernels_at("plain")  # skips where the kernels cannot be built
    bench = StepBench(make_model(tmp_path), max_loras=2, max_lora_rank=8, kv_cache_bytes=1 << 20)
    packer = bench.runtime.reader.packer
    bench.place([packer.dummy(8), packer.dummy(4)])
    plan = bench.decodes(num_streams=3, context=20, num_adapters=2)
    parts_s = break_down(lambda: bench.seconds(plan)).parts_s
    assert all(parts_s[phase] > 0 for phase in PHASES)
    base_s = break_down(lambda: bench.seconds(bench.decodes(3, 20, 0))).parts_s
    assert base_s["LoRA"] == 0


def test_nothing_is_watched_afterwards(bench: StepBench):
    before = Sampler.sample
    break_down(lambda: bench.seconds(bench.prefill(num_tokens=4, slot=1)))
    assert Sampler.sample is before


class _Logits:
    """Enough of a tensor for a draw of nobody."""

    def float(self) -> "_Logits":
        return self

    def argmax(self, dim: int) -> "_Logits":
        return self

    def tolist(self) -> list[int]:
        return []
