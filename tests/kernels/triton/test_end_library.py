"""The ends' custom operators as torch.compile and CUDA graphs see them."""

from collections.abc import Callable

import pytest
import torch
from torch._dynamo import lookup_backend
from torch._subclasses.fake_tensor import FakeTensorMode

from kernels.lora.segments import build_segments
from kernels.lora.triton.ends import library
from kernels.lora.triton.errors import LaunchRefused
from tests.kernels.triton.end_cases import BARE, OWN, EndCase, begin, build, operations

OPERATORS = ("end_lookup", "head_shrink", "head_expand", "head_product")
SMALL = EndCase(48, 64, (8, OWN, BARE), (0, 1, None, 2), torch.bfloat16, affine=True)


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_says_what_it_writes_and_torch_finds_its_fake_implementation_true(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    """`opcheck` on the very arguments that a step passes."""
    problem = build(SMALL)
    ops, segments = operations(SMALL, problem), build_segments(SMALL.slots)
    begin(ops, SMALL)
    operator, seen = getattr(library, name), list[tuple[object, ...]]()
    monkeypatch.setattr(library, name, lambda *arguments: seen.append(arguments))
    # Ones: what adds nothing would not show that `out` is written.
    monkeypatch.setattr(torch, "empty", torch.ones)
    ops.change_embeddings(problem.ids, segments, multiplier=problem.multiplier, out=problem.embeddings)
    ops.change_logits(problem.x, segments, problem.ids, out=problem.logits)
    monkeypatch.undo()
    torch.library.opcheck(operator, seen[0], test_utils=("test_schema", "test_faketensor"))
    written = [
        argument.name
        for argument in operator._opoverload._schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    assert written == ["out"]


def test_rows_that_are_not_those_of_the_output_are_refused_while_a_graph_is_made():
    problem = build(SMALL)
    ops, segments = operations(SMALL, problem), build_segments(SMALL.slots)
    begin(ops, SMALL)
    with FakeTensorMode(allow_non_fake_inputs=True):
        for rows in (3, 4):
            x, logits = (torch.empty(rows, size, dtype=torch.bfloat16) for size in (64, 48))
            ids = torch.empty(rows, dtype=torch.int64)
            ops.change_embeddings(ids, segments, multiplier=torch.empty(()), out=x)
            ops.change_logits(x, segments, ids, out=logits)
            with pytest.raises(LaunchRefused, match="ids"):
                ops.change_embeddings(ids, segments, multiplier=torch.empty(()), out=x[1:])
            with pytest.raises(LaunchRefused, match="rows"):
                ops.change_logits(x, segments, ids, out=logits[1:])


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_ends_are_one_graph_with_all_operators_and_give_the_same_bits(backend: str):
    problem = build(SMALL)
    ops, segments = operations(SMALL, problem), build_segments(SMALL.slots)
    begin(ops, SMALL)
    seen: list[str] = []

    def recorded(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
        seen.extend(str(node.target) for node in graph.graph.nodes if "loraplane" in str(node.target))
        return lookup_backend(backend)(graph, inputs)

    def ends(embeddings: torch.Tensor, x: torch.Tensor, logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
        # Written in place between two operators that a compiler would like to fuse or to reorder.
        looked_up, out = embeddings * 2, logits * 2
        ops.change_embeddings(problem.ids, segments, multiplier=problem.multiplier, out=looked_up)
        ops.change_logits(x, segments, problem.ids, out=out)
        return looked_up + 1, out + 1

    tensors = (problem.embeddings, problem.x, problem.logits)
    with torch.inference_mode():
        found = torch.compile(ends, backend=recorded, fullgraph=True)(*tensors)
        expected = ends(*tensors)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.view(torch.int16), other.view(torch.int16))
    assert seen == [f"loraplane.{name}.default" for name in OPERATORS]


def test_another_steps_adapters_are_found_at_the_addresses_of_the_step_before():
    """What a captured graph does: its launches see the same tensors, only their content changes."""
    problem = build(SMALL)
    ops, slots = operations(SMALL, problem), problem.slots
    begin(ops, SMALL)
    place, first = ops._ends.head.data_ptr(), ops._ends.head.clone()
    slots.bind(0, slots.rows[1])
    slots.bind(1, None)
    begin(ops, SMALL)
    assert ops._ends.head.data_ptr() == place
    assert torch.equal(ops._ends.head[0], first[1])
    assert not ops._ends.head[1].any()
