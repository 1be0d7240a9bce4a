"""Block sizes are a backend's: what is launched is what the proof compiles for it."""

from dataclasses import fields, replace

import pytest
import torch

from kernels.lora.segments import build_segments
from kernels.lora.triton import library
from kernels.lora.triton.configs import ExpandConfig, ShrinkConfig, load_table
from kernels.lora.triton.ends import library as end_library
from kernels.lora.triton.ends.configs import EndBlocks, load_end_blocks
from tests.kernels.triton import end_cases
from tests.kernels.triton.cases import Case, build, operations
from tests.kernels.triton.end_cases import EndCase
from tests.kernels.triton.end_launches import end_launches
from tests.kernels.triton.launches import projection_launches

END = EndCase(40, 64, (8,), (0, 0), torch.bfloat16)
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
    assert max(launch.num_stages for launch in projection_launches(target)) == most


@pytest.mark.parametrize(("hip", "target", "most"), [(None, "sm_90", 3), ("7.0", "gfx942", 2)])
def test_a_launch_of_an_end_has_them_too(
    hip: str | None, target: str, most: int, monkeypatch: pytest.MonkeyPatch
):
    launched = []
    monkeypatch.setattr(torch.version, "hip", hip)
    for name in ("end_lookup", "head_shrink", "head_expand", "head_product"):
        # The block sizes are what an operation takes before its output; stages are the last of them.
        monkeypatch.setattr(end_library, name, lambda *args: launched.append(args[-2][-1]))
    end_cases.run(END, end_cases.build(END))
    assert launched == [2, most, 2, most]
    assert max(launch.num_stages for launch in end_launches(target)) == most


def test_backends_share_everything_but_their_stages():
    cuda, hip = load_table(backend="cuda"), load_table(backend="hip")
    ends, hip_ends = load_end_blocks(backend="cuda"), load_end_blocks(backend="hip")
    rows = [
        (cuda.shrink_rows, hip.shrink_rows),
        (cuda.expand_rows, hip.expand_rows),
        *((getattr(ends, field.name), getattr(hip_ends, field.name)) for field in fields(EndBlocks)),
    ]
    assert len(rows) == 6
    for ours, theirs in rows:
        assert [(bounds, replace(c, num_stages=0)) for bounds, c in ours] == [
            (bounds, replace(c, num_stages=0)) for bounds, c in theirs
        ]
