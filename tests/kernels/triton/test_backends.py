"""Block sizes are a backend's: what is launched is what the proof compiles for it."""

import pytest
import torch

from kernels.lora.segments import build_segments
from kernels.lora.triton import library
from kernels.lora.triton.configs import ExpandConfig, ShrinkConfig, load_table
from tests.kernels.triton.cases import Case, build, operations
from tests.kernels.triton.launches import launches

SMALL = Case(64, (32,), ((8,),), (0, 0), torch.bfloat16)


@pytest.mark.parametrize(("hip", "target", "most"), [(None, "sm_90", 3), ("7.0", "gfx942", 2)])
def test_a_launch_has_the_stages_that_its_backend_is_compiled_for(
    hip: str | None, target: str, most: int, monkeypatch: pytest.MonkeyPatch
):
    launched = []
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(library, "lora_shrink", lambda *args: launched.append(ShrinkConfig(*args[8])))
    monkeypatch.setattr(library, "lora_expand", lambda *args: launched.append(ExpandConfig(*args[12])))
    problem = build(SMALL)
    operations(SMALL, problem).add(
        problem.x, problem.module, build_segments(SMALL.slots), out=problem.base.clone()
    )
    assert [config.num_stages for config in launched] == [most, 2]
    assert max(launch.num_stages for launch in launches(target)) == most


def test_backends_share_everything_but_their_stages():
    cuda, hip = load_table(backend="cuda"), load_table(backend="hip")
    for ours, theirs in zip(cuda.shrink_rows, hip.shrink_rows, strict=True):
        assert ours[0] == theirs[0]
        assert (ours[1].block_n, ours[1].block_k) == (theirs[1].block_n, theirs[1].block_k)
