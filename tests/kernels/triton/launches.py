"""The launches that the block table makes, as the compiler is asked for them.

A launch is one specialisation of a kernel: its constants, and what is known of its arguments. Knows
nothing of what a compiled one may take: see `budgets`.
"""

from collections.abc import Iterator
from dataclasses import astuple, dataclass
from typing import Any

from kernels.lora.pool import PAGE_ROWS
from kernels.lora.triton import expand, shrink
from kernels.lora.triton.configs import MAX_RANK, Bounds, load_table
from tests.kernels.triton.targets import Resources, backend_of, compile_launch

NUM_SLICES = 3
IN_FEATURES = {True: 768, False: 4096}  # of rows for small inputs, and of the others

POINTERS = ("hidden", "order", "tiles", "num_tiles", "pages", "ranks", "blocks")
SIZES = ("in_features", "out_features", "stride_x", "stride_out")
TYPES = {
    **dict.fromkeys(POINTERS, "*i32:16"),
    "affines": "*i64:16",
    "hidden": "*fp32:16",
    **dict.fromkeys((*SIZES, "stride_split"), "i32:16"),
    "stride_pages": "i32",
    **dict.fromkeys(("k_stride_token", "k_stride_head", "v_stride_token", "v_stride_head"), "i32:16"),
}
VALUES = ("x", "a", "b", "out", "key", "value", "k_cache", "v_cache")  # of the launch's dtype


@dataclass(frozen=True, slots=True)
class Launch:
    """One specialisation of a kernel."""

    name: str
    kernel: Any
    constants: dict[str, Any]
    num_warps: int
    num_stages: int
    dtype: str = "bf16"
    hinted: bool = True  # SIZES are known to be multiples of 16
    rows: str = "i32"  # of the KV write

    @property
    def decode(self) -> bool:
        """Whether its tiles are low: many of its programs must fit a multiprocessor."""
        return self.constants.get("BLOCK_M") == 16


def launches(target: str) -> Iterator[Launch]:
    """All rows of the committed table, as they are launched on `target`."""
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


def measure(launch: Launch, target: str) -> Resources:
    """Compile one launch."""
    return with_kernel(launch, launch.kernel, target)


def with_kernel(launch: Launch, kernel: Any, target: str) -> Resources:
    """Compile `kernel` as this launch is compiled."""
    signature = {name: _type(launch, name) for name in kernel.arg_names if name not in launch.constants}
    return compile_launch(
        kernel,
        signature,
        launch.constants,
        target,
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
    )


def _type(launch: Launch, name: str) -> str:
    if name in VALUES:
        return f"*{launch.dtype}:16"
    if name == "rows":
        return f"*{launch.rows}:16"
    return TYPES[name] if launch.hinted or name not in SIZES else TYPES[name].partition(":")[0]


def _name(kernel: str, bounds: Bounds, numbers: tuple[int, ...]) -> str:
    return f"{kernel}-h{bounds.tile_height}-{'x'.join(map(str, numbers))}"
