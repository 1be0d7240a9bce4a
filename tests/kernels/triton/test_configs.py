from dataclasses import astuple
from itertools import product
from pathlib import Path

import pytest
import torch

from kernels.lora.triton.columns import cut_columns
from kernels.lora.triton.configs import TILE_HEIGHTS, load_table, rank_bound
from kernels.lora.triton.errors import LaunchRefused

TABLE = load_table()
RANKS, TILES = (16, 32, 64, 128, 256, 512), (1, 32, 33, 128, 129, 4096)


@pytest.mark.parametrize("height", TILE_HEIGHTS)
def test_every_reachable_shape_has_block_sizes_that_kernels_can_be_compiled_for(height: int):
    for tiles, rank, slices, inputs in product(TILES, RANKS, (1, 2, 3), (576, 1024, 4096, 53248)):
        shrink = TABLE.shrink(height, tiles, rank * slices, inputs)
        expand = TABLE.expand(height, tiles, rank)
        for size in (shrink.block_n, shrink.block_k, expand.block_n, expand.block_r, shrink.num_warps):
            assert size & (size - 1) == 0
        assert min(shrink.block_n, shrink.block_k, expand.block_n, expand.block_r) >= 16
        assert rank <= expand.block_r or rank % expand.block_r == 0


def test_no_row_is_hidden_by_one_before_it():
    for rows in (TABLE.shrink_rows, TABLE.expand_rows):
        for place, (bounds, _) in enumerate(rows):
            for earlier, _ in rows[:place]:
                wider = [
                    e is None or (b is not None and b <= e)
                    for e, b in zip(astuple(earlier)[1:], astuple(bounds)[1:], strict=True)
                ]
                assert earlier.tile_height != bounds.tile_height or not all(wider)


def test_a_table_with_a_hole_is_refused(tmp_path: Path):
    table = tmp_path / "table.json"
    table.write_text('{"shrink": [], "expand": []}')
    with pytest.raises(LaunchRefused, match="tile_height: 16 has no row without bounds"):
        load_table(table)


def test_ranks_are_bound_by_powers_of_two_up_to_512():
    assert [rank_bound(rank) for rank in (1, 8, 16, 17, 64, 320, 512)] == [16, 16, 16, 32, 64, 512, 512]
    for rank in (0, 513):
        with pytest.raises(LaunchRefused, match="within 1 to 512"):
            rank_bound(rank)


def test_blocks_of_columns_cover_every_slice_and_never_cross_into_the_next():
    columns = (slice(0, 576), slice(576, 768), slice(768, 960))
    cut = cut_columns(columns, 128, torch.device("cpu"))
    covered = [
        (piece, column)
        for piece, begin, end, _ in cut.blocks.tolist()
        for column in range(begin, min(begin + 128, end))
    ]
    assert covered == [
        (i, column) for i, piece in enumerate(columns) for column in range(piece.start, piece.stop)
    ]
    assert (cut.align, cut.even) == (64, False)
    assert cut_columns((slice(0, 256), slice(256, 384)), 128, torch.device("cpu")).even
    assert cut_columns((slice(0, 24), slice(24, 64)), 128, torch.device("cpu")).align == 8
