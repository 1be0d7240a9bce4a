"""The ends' block table, and their host code in processes where kernels are compiled and none runs."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from kernels.lora.triton.configs import TILE_HEIGHTS
from kernels.lora.triton.ends.configs import load_end_blocks
from kernels.lora.triton.errors import LaunchRefused
from tests.kernels.triton.targets import MAX_SHARED
from tests.kernels.triton.test_compiled import run_module

BLOCKS = load_end_blocks()
# A vocabulary of 128256 in blocks of 256 columns, and in blocks of 64.
VOCABULARY_BLOCKS = {"expand": 501, "product": 2004}


@pytest.mark.parametrize("height", TILE_HEIGHTS)
def test_every_reachable_shape_has_block_sizes_that_kernels_can_be_compiled_for(height: int):
    for tiles, rank in product((1, 8, 9, 4096), (16, 32, 64, 128, 256, 512)):
        lookup, shrink = BLOCKS.lookup(height, rank), BLOCKS.shrink(height, rank)
        expand, whole = BLOCKS.expand(height, tiles, rank), BLOCKS.product(height, tiles)
        sizes = (
            *(lookup.block_n, lookup.block_r, shrink.block_n, shrink.block_k),
            *(expand.block_n, expand.block_r, whole.block_n, whole.block_k),
        )
        assert all(size >= 16 and size & (size - 1) == 0 for size in sizes)
        assert rank <= expand.block_r or rank % expand.block_r == 0


def test_a_table_with_a_hole_is_refused(tmp_path: Path):
    table = tmp_path / "table.json"
    table.write_text('{"lookup": [], "shrink": [], "expand": [], "product": []}')
    with pytest.raises(LaunchRefused, match=r"lookup.tile_height: 16 has no row without bounds"):
        load_end_blocks(table)


def test_decode_batches_of_any_size_are_one_compilation_a_kernel_and_four_launches_a_step():
    few, many = json.loads(run_module("dry_run_ends").splitlines()[-1])
    assert few["compilations"] == dict.fromkeys(("lookup", "shrink", "expand", "product"), 1)
    # More tiles are another grid and nothing else.
    assert set(many["compilations"].values()) == {0}
    for swept, programs in ((few, {"expand": 128, "product": 512}), (many, {"expand": 32, "product": 64})):
        expected = [
            launch
            for num_tiles in swept["batches"]
            for launch in (
                ["_lookup_kernel", [16, num_tiles, 1]],
                ["_shrink_kernel", [1, 8, num_tiles]],
                ["_expand_kernel", [programs["expand"], num_tiles, 1]],
                ["_product_kernel", [programs["product"], num_tiles, 1]],
            )
        ]
        assert swept["launches"] == expected
        assert all(count < VOCABULARY_BLOCKS[name] for name, count in programs.items())


@pytest.mark.slow
@pytest.mark.parametrize(("target", "most"), [("sm_90", 3), ("gfx942", 2)])
def test_every_table_row_is_compiled_once_at_most_whatever_the_batch(target: str, most: int):
    printed = run_module("dry_run_ends", "--rows", "--target", target)
    sweeps: list[dict[str, Any]] = json.loads(printed.splitlines()[-1])
    # What is launched is what the budgets compile, and it fits.
    assert {swept["num_stages"] for swept in sweeps} == {most}
    assert max(swept["shared"] for swept in sweeps) <= MAX_SHARED[target]
    assert max(count for swept in sweeps for count in swept["compilations"].values()) == 1
    made = {name: sum(swept["compilations"][name] for swept in sweeps) for name in ("lookup", "product")}
    assert made == {"lookup": 4, "product": 2}
