"""The launches that the block tables make: the projections' here, and the ends' of `end_launches`."""

from collections.abc import Iterator
from dataclasses import astuple

from kernels.lora.pool import PAGE_ROWS
from kernels.lora.triton import expand, shrink
from kernels.lora.triton.configs import MAX_RANK, Bounds, load_table
from tests.kernels.triton.end_launches import end_launches
from tests.kernels.triton.launch import Launch
from tests.kernels.triton.targets import backend_of

NUM_SLICES = 3
IN_FEATURES = {True: 768, False: 4096}  # of rows for small inputs, and of the others


def launches(target: str) -> Iterator[Launch]:
    """All rows of both committed tables, as they are launched on `target`."""
    yield from projection_launches(target)
    yield from end_launches(target)


def projection_launches(target: str) -> Iterator[Launch]:
    """All rows of the projections' table, as they are launched on `target`."""
    table, seen = load_table(backend=backend_of(target)), set()
    # Dependent launches exist from sm_90 on.
    dependent = target in ("sm_90", "sm_100")
    common = {"NUM_SLICES": NUM_SLICES, "SLICES_PAD": 4, "PAGE": PAGE_ROWS, "DEPENDENT": dependent}
    for bounds, row in table.shrink_rows:
        key = (bounds.tile_height, row.block_n, row.block_k)
        if key in seen:
            continue
        seen.add(key)
        inputs = IN_FEATURES[bounds.max_in_features is not None]
        constants = {
            **common,
            "RANK": 64,
            "BLOCK_M": bounds.tile_height,
            "BLOCK_N": row.block_n,
            "BLOCK_K": row.block_k,
            "SPLIT_K": row.split_k,
            "EVEN_K": inputs % row.block_k == 0,
        }
        yield Launch(
            _name("shrink", bounds, astuple(row)[:3]),
            shrink._shrink_kernel,
            constants,
            row.num_warps,
            row.num_stages,
        )
    splits = sorted({row.split_k for _, row in table.shrink_rows})
    for bounds, rows in table.expand_rows:
        for rank in {bounds.max_rank or max(64, rows.block_r), bounds.max_rank or MAX_RANK}:
            constants = {
                **common,
                "RANK": rank,
                "ALIGN": 64,
                "BLOCK_M": bounds.tile_height,
                "BLOCK_N": rows.block_n,
                "BLOCK_R": rows.block_r,
                "SPLIT_K": splits[-1] if bounds.tile_height == 16 else 4,
                "EVEN_N": True,
            }
            name = _name("expand", bounds, (rows.block_n, rows.block_r, rank))
            yield Launch(name, expand._expand_kernel, constants, rows.num_warps, rows.num_stages)


def _name(kernel: str, bounds: Bounds, numbers: tuple[int, ...]) -> str:
    return f"{kernel}-h{bounds.tile_height}-{'x'.join(map(str, numbers))}"
