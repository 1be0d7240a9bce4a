"""Specialisations that the block tables' rows have beside the one of the golden file.

Each row with fp16, with one and two slices, with inputs and columns that blocks do not divide, with slices
that begin at multiples of 8 to 32, with sizes that are no multiple of 16; the ends' with what of that they
have; and the KV write. Not every combination: each of these at least once a row.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import triton

from kernels.gpu import kv_write
from tests.kernels.triton.launch import Launch

SHRINK: dict[str, dict[str, Any]] = {
    "fp16-1-slice": {"dtype": "fp16", "NUM_SLICES": 1, "RANK": 16, "EVEN_K": True},
    "2-slices-masked": {"NUM_SLICES": 2, "RANK": 512, "EVEN_K": False},
    "fp16-odd": {"dtype": "fp16", "EVEN_K": False, "hinted": False},
}
EXPAND: dict[str, dict[str, Any]] = {
    "fp16-1-slice-align-8": {"dtype": "fp16", "NUM_SLICES": 1, "EVEN_N": False, "ALIGN": 8},
    "2-slices-align-16": {"NUM_SLICES": 2, "EVEN_N": False, "ALIGN": 16},
    "fp16-align-32": {"dtype": "fp16", "EVEN_N": False, "ALIGN": 32},
    "odd": {"NUM_SLICES": 2, "EVEN_N": False, "ALIGN": 8, "hinted": False},
}
PLAIN: dict[str, dict[str, Any]] = {"fp16": {"dtype": "fp16"}, "odd": {"hinted": False}}
MASKED: dict[str, dict[str, Any]] = {
    "fp16-masked": {"dtype": "fp16", "EVEN_K": False},
    "odd": {"EVEN_K": False, "hinted": False},
}
CHANGES = {
    "shrink": SHRINK,
    "expand": EXPAND,
    "lookup": PLAIN,
    "head_shrink": MASKED,
    "head_expand": PLAIN,
    "head_product": MASKED,
}
HEADS = ((64, 64), (128, 128), (24, 40))  # of K and V


def variants(rows: Iterable[Launch]) -> Iterator[Launch]:
    """Of each of the tables' launches, then the KV write."""
    for launch in rows:
        for name, change in CHANGES[launch.name.partition("-")[0]].items():
            yield _changed(launch, name, **change)
    for (k_head, v_head), dtype, rows_type in product(HEADS, ("bf16", "fp16"), ("i32", "i64")):
        yield Launch(
            f"kv_write-{k_head}x{v_head}-{dtype}-{rows_type}",
            kv_write._kv_write_kernel,
            {"K_HEAD": k_head, "V_HEAD": v_head, "BLOCK": triton.next_power_of_2(max(k_head, v_head))},
            num_warps=1,
            num_stages=3,
            dtype=dtype,
            rows=rows_type,
        )


def _changed(
    launch: Launch, name: str, *, dtype: str = "bf16", hinted: bool = True, **constants: Any
) -> Launch:
    return replace(
        launch,
        name=f"{launch.name}-{name}",
        constants=launch.constants | constants,
        dtype=dtype,
        hinted=hinted,
    )
