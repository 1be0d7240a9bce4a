"""A GPU that does not hold the kernels' block sizes serves by plain PyTorch, and says so."""

from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from triton.runtime.errors import OutOfResources

from data_plane.engine.runtime import build_runtime
from tests.data_plane.engine.test_cuda_platform import (  # noqa: F401 (fixtures)
    ENDS,
    _stand_ins,
    batch,
    config,
    load,
    made,
    outputs,
    root,
)
from tests.kernels.gpu.stand_ins import BufferedDevice, RerunRecorder, TableEndOps, TableLoraOps


class Small(RerunRecorder):
    def record(self, work: Any) -> Any:
        raise OutOfResources(240000, 101376, "shared memory")


@pytest.mark.usefixtures("_stand_ins")
def test_a_launch_that_does_not_fit_leaves_a_worker_that_serves_with_the_reason(
    root: Path,  # noqa: F811 (the fixture)
    monkeypatch: pytest.MonkeyPatch,
):
    def fails(*args: Any, **kwargs: Any) -> None:
        raise OutOfResources(240000, 101376, "shared memory")

    # Eagerly it does not fit either.
    monkeypatch.setattr(TableLoraOps, "add", fails)
    monkeypatch.setattr(TableEndOps, "change_embeddings", fails)
    monkeypatch.setattr(TableEndOps, "change_logits", fails)
    with capture_logs() as lines:
        runtime = made(config(root), BufferedDevice(), Small())
    told = [(line["event"], line.get("path")) for line in lines if line["log_level"] == "warning"]
    assert told == [("gpu_lora", "torch"), ("gpu_graphs", None)]
    assert all("240000" in line["reason"] for line in lines if line["log_level"] == "warning")
    # Of adapters with DoRA and biases too, and of those that change an end.
    cpu = config(root, device="cpu")
    on_cpu = load(build_runtime(cpu), cpu)
    for names in (("wide", "dora", "biased"), ENDS):
        load(runtime, cpu, names)
        load(on_cpu, cpu, names)
        assert outputs(runtime, batch(5)) == outputs(on_cpu, batch(5))


@pytest.mark.usefixtures("_stand_ins")
@pytest.mark.parametrize("launch", ["change_embeddings", "change_logits"])
def test_a_launch_of_an_end_that_does_not_fit_leaves_a_worker_that_serves_too(
    launch: str,
    root: Path,  # noqa: F811 (the fixture)
    monkeypatch: pytest.MonkeyPatch,
):
    def fails(*args: Any, **kwargs: Any) -> None:
        raise OutOfResources(240000, 101376, "shared memory")

    monkeypatch.setattr(TableEndOps, launch, fails)
    with capture_logs() as lines:
        runtime = made(config(root), BufferedDevice(), RerunRecorder())
    told = [(line["event"], line.get("path")) for line in lines if line["log_level"] == "warning"]
    assert told == [("gpu_lora", "torch"), ("gpu_graphs", None)]
    cpu = config(root, device="cpu")
    load(runtime, cpu, ENDS)
    assert outputs(runtime, batch(5)) == outputs(load(build_runtime(cpu), cpu, ENDS), batch(5))
