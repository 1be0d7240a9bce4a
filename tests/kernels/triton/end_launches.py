"""Every row of the ends' block table as a launch to compile: what `launches` adds to the projections'."""

from collections.abc import Iterator
from dataclasses import astuple
from typing import Any

from kernels.lora.pool import PAGE_ROWS
from kernels.lora.triton.configs import MAX_RANK, Bounds
from kernels.lora.triton.ends import expand, lookup, product, shrink
from kernels.lora.triton.ends.configs import EndBlocks, load_end_blocks
from tests.kernels.triton.launch import Launch
from tests.kernels.triton.targets import backend_of

IN_FEATURES = 4096


def end_launches(target: str) -> Iterator[Launch]:
    """One a kernel and table row that differs in more than its grid, as it is launched on `target`."""
    seen, blocks = set[str](), load_end_blocks(backend=backend_of(target))
    for launch in (*_lookups(blocks), *_shrinks(blocks), *_expands(blocks), *_products(blocks)):
        if launch.name not in seen:
            seen.add(launch.name)
            yield launch


def _lookups(blocks: EndBlocks) -> Iterator[Launch]:
    for bounds, row in blocks.lookup_rows:
        constants = {"BLOCK_N": row.block_n, "BLOCK_R": row.block_r}
        yield _launch("lookup", lookup._lookup_kernel, bounds, row, constants)


def _shrinks(blocks: EndBlocks) -> Iterator[Launch]:
    for bounds, row in blocks.shrink_rows:
        constants = {
            "PAGE": PAGE_ROWS,
            "RANK": bounds.max_columns or 64,
            "BLOCK_N": row.block_n,
            "BLOCK_K": row.block_k,
            "SPLIT_K": row.split_k,
            "EVEN_K": IN_FEATURES % row.block_k == 0,
        }
        yield _launch("head_shrink", shrink._shrink_kernel, bounds, row, constants)


def _expands(blocks: EndBlocks) -> Iterator[Launch]:
    splits = {bounds.tile_height: row.split_k for bounds, row in blocks.shrink_rows}
    for bounds, row in blocks.expand_rows:
        for rank in sorted({bounds.max_rank or max(64, row.block_r), bounds.max_rank or MAX_RANK}):
            constants = {
                "PAGE": PAGE_ROWS,
                "RANK": rank,
                "BLOCK_N": row.block_n,
                "BLOCK_R": row.block_r,
                "SPLIT_K": splits[bounds.tile_height],
            }
            yield _launch("head_expand", expand._expand_kernel, bounds, row, constants, rank)


def _products(blocks: EndBlocks) -> Iterator[Launch]:
    for bounds, row in blocks.product_rows:
        even = IN_FEATURES % row.block_k == 0
        constants = {"BLOCK_N": row.block_n, "BLOCK_K": row.block_k, "EVEN_K": even}
        yield _launch("head_product", product._product_kernel, bounds, row, constants)


def _launch(
    name: str, kernel: Any, bounds: Bounds, row: Any, constants: dict[str, Any], *numbers: int
) -> Launch:
    sizes = "x".join(map(str, (*astuple(row)[:2], *numbers)))
    constants = {**constants, "BLOCK_M": bounds.tile_height}
    whole = f"{name}-h{bounds.tile_height}-{sizes}"
    return Launch(whole, kernel, constants, row.num_warps, row.num_stages)
