"""A launch as the compiler is asked for it: one specialisation of a kernel.

Its constants, and what is known of its arguments. Knows no table of block sizes (see `launches`), and
nothing of what a compiled one may take (see `budgets`).
"""

from dataclasses import dataclass
from typing import Any

from tests.kernels.triton.targets import Resources, compile_launch

POINTERS = ("hidden", "order", "tiles", "num_tiles", "pages", "ranks", "blocks")
SIZES = ("in_features", "out_features", "width", "stride_x", "stride_out")
TYPES = {
    **dict.fromkeys(POINTERS, "*i32:16"),
    **dict.fromkeys(("affines", "ids", "ends"), "*i64:16"),
    **dict.fromkeys(("hidden", "multiplier"), "*fp32:16"),
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

    @property
    def streams(self) -> bool:
        """Whether it runs over inputs, so that copies of the next ones overlap the products of these."""
        return "BLOCK_K" in self.constants


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
