"""What of `make gpu` can be tried without a GPU: all but the clock and the capture of graphs."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kernels.lora.triton.configs import load_table
from tests.kernels.gpu import ends
from tests.kernels.gpu import run as gpu
from tests.kernels.triton import step_time
from tests.kernels.triton.cases import BOUND
from tests.kernels.triton.roofline import H100, Model, Projection
from tests.kernels.triton.tuner import Sample

TINY = Model(
    "tiny",
    2,
    (Projection("qkv", 64, (32, 16, 16)), Projection("o", 64, (64,))),
    Projection("head", 64, (256,)),
)


PLAIN_IMAGE = ("torch", "torchgen", "triton", "numpy", "tqdm", "typing_extensions")
# Names of packages from outside Python's library that importing all of `make gpu` has brought in.
IMPORTED = """
import sys
from tests.kernels.gpu import run
files = {name.partition(".")[0] for name, module in sys.modules.items() if getattr(module, "__file__", None)}
# What begins with _ is how this python was set up.
print(*(name for name in files - sys.stdlib_module_names if name[0] != "_"))
"""


def module_run(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """This python on the repository, with nothing of the tests' environment but what is given."""
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PATH": "/usr/bin:/bin", **environment},
        check=False,
    )


class EagerGraph:
    """Runs again what a graph would replay; `replays` counts."""

    replays = 0

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        work()

    def replay(self) -> None:
        EagerGraph.replays += 1
        self._work()


@pytest.fixture
def _eager(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(graph: EagerGraph, num_replays: int, flush: object = None) -> float:
        graph.replay()
        return 1.0

    monkeypatch.setattr(step_time, "capture", EagerGraph)
    monkeypatch.setattr(step_time, "replay_seconds", seconds)


@pytest.mark.usefixtures("_eager")
def test_a_graph_replayed_for_other_adapters_computes_theirs():
    before = EagerGraph.replays
    assert gpu.replayed_graph("cpu") < BOUND
    assert EagerGraph.replays == before + 4


@pytest.mark.usefixtures("_eager")
def test_a_graph_of_both_ends_computes_what_its_slots_are_bound_to_when_it_is_replayed():
    before = EagerGraph.replays
    assert ends.replayed_ends("cpu") < BOUND
    assert EagerGraph.replays == before + 4


@pytest.mark.usefixtures("_eager")
def test_a_step_runs_every_projection_with_its_adapters_and_without():
    step = step_time.Step(TINY, num_layers=2, num_tokens=5, num_slots=3, rank=8, device="cpu")
    step.seconds(None)
    base = [layer.y.clone() for layer in step._layers]
    step.seconds(3)
    assert len(base) == 4
    assert not any(torch.equal(layer.y, y) for layer, y in zip(step._layers, base, strict=True))


@pytest.mark.usefixtures("_eager")
@pytest.mark.parametrize("kernel", ["shrink", "expand"])
def test_the_tuner_times_one_launch_of_a_sample(kernel: str):
    timer = step_time.LaunchTimer("cpu")
    assert timer(Sample(kernel, 64, (32, 16), 8, num_tokens=6, num_adapters=2), load_table()) == 1.0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert gpu.main(["--out", str(tmp_path / "out")]) == 2
    assert "no GPU" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_make_gpu_without_a_gpu_is_one_line_and_no_traceback(tmp_path: Path):
    done = module_run(["-m", "tests.kernels.gpu", "--out", str(tmp_path / "out")], CUDA_VISIBLE_DEVICES="")
    assert (done.returncode, done.stderr) == (2, "")
    assert done.stdout.splitlines() == [
        "no GPU: torch.cuda.is_available() is False. `make kernels` needs none."
    ]


def test_a_python_without_torch_is_named_and_nothing_is_imported():
    # -S: no packages but Python's own.
    done = module_run(["-S", "-m", "tests.kernels.gpu"])
    assert (done.returncode, done.stderr) == (2, "")
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"no GPU run: {sys.executable} lacks torch, triton;")


def test_it_imports_nothing_that_a_plain_image_of_pytorch_lacks():
    found = set(module_run(["-c", IMPORTED]).stdout.split())
    assert {"torch", "triton"} <= found <= {"kernels", "tests", *PLAIN_IMAGE}


def test_a_run_writes_a_whole_table_and_ends_with_1_where_a_number_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def stands_in(place: object, name: str, value: object) -> None:
        monkeypatch.setattr(place, name, lambda *arguments: value)

    stands_in(torch.cuda, "is_available", True)
    stands_in(torch.cuda, "get_device_name", "stand-in")
    stands_in(gpu, "attempted_end_to_end", {"skipped": "not installed: transformers"})
    stands_in(gpu, "limits_of_device", H100)
    stands_in(gpu, "step_times", [])
    stands_in(step_time, "LaunchTimer", lambda sample, table: 1.0)
    right = {
        "replayed_graph": BOUND / 2,
        "replayed_ends": BOUND / 2,
        "correctness": [{"error": BOUND / 2}] * gpu.num_demanded(),
        "end_correctness": [{"error": BOUND / 2}] * gpu.num_demanded_ends(),
        "paged": [{"check": "kv_write", "wrong": None}],
    }
    faults: list[dict[str, object]] = [
        *({name: BOUND} for name in ("replayed_graph", "replayed_ends")),
        *({name: [*right[name][1:], {"error": BOUND}]} for name in ("correctness", "end_correctness")),
        *({name: right[name][1:]} for name in ("correctness", "end_correctness", "paged")),
        {"paged": [{"check": "kv_write", "wrong": "1 elements differ"}]},
    ]
    for fault in ({}, *faults):
        for name, value in {**right, **fault}.items():
            stands_in(gpu, name, value)
        assert gpu.main(["--out", str(tmp_path)]) == int(bool(fault)), fault
    table = load_table()
    assert load_table(tmp_path / "table.json") == table
    result = json.loads((tmp_path / "result.json").read_text())
    assert len(result["tuned"]) == len(table.shrink_rows) + len(table.expand_rows)
    assert result["limits"]["name"] == H100.name


def test_correctness_computes_what_is_demanded_before_it_looks_at_its_deadline(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(gpu, "RANKS", (1, 8))
    monkeypatch.setattr(gpu, "WIDTHS", {64: (32, 16), 40: (24,)})
    found = gpu.correctness("cpu", time.monotonic() - 1)
    assert len(found) == gpu.num_demanded() == 8
    assert {(case["rank"], case["in_features"], case["dtype"]) for case in found} == {
        (rank, inputs, dtype)
        for rank in (1, 8)
        for inputs in (64, 40)
        for dtype in ("torch.bfloat16", "torch.float16")
    }
    assert all(case["error"] < BOUND for case in found)
    assert len(gpu.correctness("cpu", time.monotonic() + 600)) == 4 * 8


def test_correctness_of_the_ends_computes_what_is_demanded_before_it_looks_at_its_deadline(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(ends, "RANKS", (1, 8))
    monkeypatch.setattr(ends, "SHAPES", ((40, 64), (72, 32)))
    monkeypatch.setattr(ends, "TOKENS", (7, 1))
    monkeypatch.setattr(ends, "CAPTURED", 7)
    found = ends.end_correctness("cpu", time.monotonic() - 1)
    assert len(found) == ends.num_demanded_ends() == 8
    assert {(case["rank"], case["vocabulary"], case["dtype"]) for case in found} == {
        (rank, vocabulary, dtype)
        for rank in (1, 8)
        for vocabulary in (40, 72)
        for dtype in ("torch.bfloat16", "torch.float16")
    }
    assert all(case["error"] < BOUND for case in found)
    assert len(ends.end_correctness("cpu", time.monotonic() + 600)) == 2 * 8


def test_it_plots_what_was_timed_or_that_nothing_was():
    steps = [
        {"model": "Llama-3-8B", "rank": 16, "num_adapters": n, "ratio": 1.2, "limit": 1.1} for n in (1, 4)
    ]
    assert gpu.plot(steps).count("<polyline") == 2
    assert "no step was timed" in gpu.plot([])
