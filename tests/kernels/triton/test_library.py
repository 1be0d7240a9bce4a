"""The custom operators as torch.compile and CUDA graphs see them."""

from collections.abc import Callable

import pytest
import torch
from torch._dynamo import lookup_backend
from torch._subclasses.fake_tensor import FakeTensorMode

from kernels.lora.segments import build_segments
from kernels.lora.triton import library
from kernels.lora.triton.errors import LaunchRefused
from kernels.lora.triton.tiles import LaunchShape
from tests.kernels.triton.cases import Case, build, operations

SHRINK = (library.lora_shrink, "loraplane::lora_shrink")
EXPAND = (library.lora_expand, "loraplane::lora_expand")


def test_operators_say_what_they_write():
    for operator, name in (SHRINK, EXPAND):
        schema = operator._opoverload._schema
        assert str(schema).startswith(name)
        written = [
            argument.name
            for argument in schema.arguments
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        assert (written, len(schema.returns)) == (["out"], 0)


def test_fake_tensors_go_through_both_operators_without_a_launch():
    with FakeTensorMode():
        x, a = torch.empty(4, 64, dtype=torch.half), torch.empty(16, 1, 64, dtype=torch.half)
        b, y = torch.empty(16, 32, dtype=torch.half), torch.empty(4, 32, dtype=torch.half)
        table, hidden = torch.empty(2, 4, dtype=torch.int32), torch.empty(2, 4, 1, 16)
        shared = (table, table, table[0], table, table[0, :1])
        library.lora_shrink(x, a, *shared, (16, 1, 16), (16, 64, 2, 4, 3), False, hidden)
        affines, blocks = torch.empty(2, 2, dtype=torch.int64), table
        step = shared[2:]
        library.lora_expand(
            hidden, b, table, table, affines, *step, blocks, 16, True, (16, 1, 16), (32, 16, 4, 2), False, y
        )


@pytest.mark.parametrize("which", ["shrink", "expand"])
def test_torch_finds_the_schemas_and_the_fake_implementations_true(
    which: str, monkeypatch: pytest.MonkeyPatch
):
    """`opcheck` on the very arguments that a step passes."""
    small = Case(64, (32, 16), ((8, 8), (16, 3)), (0, 1, None, 1), torch.bfloat16)
    problem = build(small)
    ops, module, segments = operations(small, problem), problem.module, build_segments(small.slots)
    seen: list[tuple[object, ...]] = []
    operator = getattr(library, f"lora_{which}")
    monkeypatch.setattr(library, f"lora_{which}", lambda *arguments: seen.append(arguments))
    # Ones: what adds nothing would not show that `out` is written.
    hidden = ops.hidden(segments, module, problem.x).fill_(1.0)
    if which == "shrink":
        ops.shrink(problem.x, module, segments, out=hidden)
    else:
        ops.expand(hidden, module, segments, out=problem.base)
    torch.library.opcheck(operator, seen[0], test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_projection_is_one_graph_with_both_operators_and_gives_the_same_bits(backend: str):
    small = Case(64, (32, 16), ((8, 8), (16, 3)), (0, 1, None, 1), torch.bfloat16, affine=True)
    problem = build(small)
    ops, module, segments = operations(small, problem), problem.module, build_segments(small.slots)
    ops.prepare(segments)
    seen: list[str] = []

    def recorded(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
        seen.extend(str(node.target) for node in graph.graph.nodes if "loraplane" in str(node.target))
        return lookup_backend(backend)(graph, inputs)

    def projection(x: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        # Written in place between two operators that a compiler would like to fuse or to reorder.
        out = base * 2
        ops.add(x, module, segments, out=out)
        return out + 1

    with torch.inference_mode():
        found = torch.compile(projection, backend=recorded, fullgraph=True)(problem.x, problem.base)
        expected = projection(problem.x, problem.base)
    assert torch.equal(found.view(torch.int16), expected.view(torch.int16))
    assert seen == ["loraplane.lora_shrink.default", "loraplane.lora_expand.default"]


def test_a_graph_of_other_adapters_is_replayed_by_writing_tiles_alone():
    """What a captured graph does: the launches see the same tensors, only their content changes."""
    small = Case(64, (32, 16), ((8, 8), (16, 3)), (0, 1, None, 1), torch.bfloat16)
    problem = build(small)
    ops, module = operations(small, problem), problem.module
    shape = LaunchShape.for_capture(4, 2, rank=16)
    seen: list[tuple[int, ...]] = []
    for slots in (small.slots, (1, None, None, 0)):
        segments = build_segments(slots)
        ops.prepare(segments, shape)
        hidden = ops.hidden(segments, module, problem.x)
        step = ops._prepared(segments)
        places = (step.order.data_ptr(), step.tiles.data_ptr(), step.num_tiles.data_ptr())
        seen.append((*places, *hidden.shape, step.shape.num_tiles))
    assert seen[0] == seen[1]


def test_a_graph_captured_for_smaller_ranks_is_refused_before_it_drops_rows():
    small = Case(64, (32,), ((40,),), (0,), torch.bfloat16)
    ops = operations(small, build(small))
    with pytest.raises(LaunchRefused, match="rank: 64 is over the launch's 32"):
        ops.prepare(build_segments([0]), LaunchShape.for_capture(1, 1, rank=32))
