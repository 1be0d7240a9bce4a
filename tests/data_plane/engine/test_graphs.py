import pytest
import torch

from data_plane.engine.graphs import capture_sizes, padded
from data_plane.engine.inputs import step_inputs
from data_plane.scheduler.plan import Chunk, Draw, StepPlan
from data_plane.scheduler.sampling import SamplingParams

DRAW = Draw(SamplingParams(temperature=0), 0, 0, True)


@pytest.mark.parametrize(
    ("max_num_seqs", "sizes"),
    [
        (1, (1,)),
        (3, (1, 2, 4)),
        (4, (1, 2, 4)),
        (5, (1, 2, 4, 8)),
        (16, (1, 2, 4, 8, 16)),
        (17, (1, 2, 4, 8, 16, 24)),
    ],
)
def test_sizes_are_few_and_hold_every_decode_batch(max_num_seqs: int, sizes: tuple[int, ...]):
    assert capture_sizes(max_num_seqs) == sizes


def test_padding_adds_rows_of_the_scratch_block_without_adapter_and_changes_nothing_else():
    chunks = (Chunk(0, (5,), 8, (4, 6, 1), 1, DRAW), Chunk(1, (9,), 3, (2,), None, DRAW))
    inputs = step_inputs(StepPlan(chunks), block_size=4)
    wide = padded(inputs, 4, scratch_block=7)
    assert wide.token_ids.tolist() == [*inputs.token_ids.tolist(), 0, 0]
    assert wide.positions.tolist() == [*inputs.positions.tolist(), 0, 0]
    assert wide.batch.rows.tolist() == [*inputs.batch.rows.tolist(), 28, 28]
    assert wide.logit_rows.tolist() == [*inputs.logit_rows.tolist(), 0, 0]
    assert wide.new_blocks.tolist() == [*inputs.new_blocks.tolist(), *[7] * (4 - len(inputs.new_blocks))]
    assert wide.segments is not None
    assert inputs.segments is not None
    assert wide.segments.tiles == inputs.segments.tiles
    assert [chunk.blocks for chunk in wide.chunks[2:]] == [(7,), (7,)]
    assert torch.equal(wide.batch.contexts[2:], torch.ones(2, dtype=torch.int64))
