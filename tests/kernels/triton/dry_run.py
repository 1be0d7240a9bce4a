"""Runs the real host code of the launches with no GPU: a driver that compiles but only records.

    python -m tests.kernels.triton.dry_run

Prints JSON: compilations of each kernel over a sweep of decode batches, the launches, and whether
a block size that no GPU can hold is refused. Tensors are on the CPU; nothing is computed.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
import triton
from triton.backends.driver import DriverBase
from triton.runtime.errors import OutOfResources

from kernels.lora.ops import add_lora
from kernels.lora.pool import LoraModule, SlotRows, SlotTable
from kernels.lora.segments import build_segments
from kernels.lora.triton import expand, shrink
from kernels.lora.triton.configs import BlockTable, Bounds, ExpandConfig, ShrinkConfig
from kernels.lora.triton.ops import TritonLoraOps
from tests.kernels.triton.targets import MAX_SHARED, TARGETS

TARGET = "sm_90"
BATCHES = (1, 2, 3, 7, 8, 16, 17, 31, 32, 48, 64)
NUM_SLOTS, RANK, IN_FEATURES, WIDTHS = 40, 16, 4096, (4096, 1024, 1024)


class _Utilities:
    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": MAX_SHARED[TARGET], "multiprocessor_count": 132, "warpSize": 32}

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[int, ...]:
        return 0, 0, 0, 0, 1024


class RecordingDriver(DriverBase):
    """Stands where the CUDA driver stands."""

    def __init__(self) -> None:
        super().__init__()
        self.utils, self.launches = _Utilities(), list[dict[str, Any]]()

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        """What Triton calls to make a launch of a compiled kernel."""

        def launch(x: int, y: int, z: int, *rest: object) -> None:
            self.launches.append({"kernel": source.fn.__name__, "grid": (x, y, z), "shared": metadata.shared})

        return launch

    @classmethod
    def is_active(cls) -> bool:
        return True

    def get_current_target(self) -> Any:
        return TARGETS[TARGET]

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_benchmarker(self) -> Any:
        raise RuntimeError("nothing runs here")


def made_module() -> LoraModule:
    """A pool of one page list per slot, whose numbers do not matter."""
    slots = SlotTable([SlotRows((2 * slot, 2 * slot + 1), ((RANK,) * 3,)) for slot in range(NUM_SLOTS)])
    columns = (slice(0, 4096), slice(4096, 5120), slice(5120, 6144))
    a = torch.empty(NUM_SLOTS * RANK, 3, IN_FEATURES, dtype=torch.bfloat16)
    return LoraModule(0, a, torch.empty(NUM_SLOTS * RANK, sum(WIDTHS), dtype=torch.bfloat16), columns, slots)


def launch(ops: TritonLoraOps, module: LoraModule, num_tokens: int, num_adapters: int) -> None:
    """One module's launches of a decode batch."""
    segments = build_segments([token % num_adapters for token in range(num_tokens)])
    x = torch.empty(num_tokens, IN_FEATURES, dtype=torch.bfloat16)
    add_lora(ops, x, module, segments, out=torch.empty(num_tokens, sum(WIDTHS), dtype=torch.bfloat16))


def compilations() -> dict[str, int]:
    """Specialisations made so far."""
    kernels = {"shrink": shrink._shrink_kernel, "expand": expand._expand_kernel}
    return {name: len(kernel.device_caches[0][0]) for name, kernel in kernels.items()}


def refuses_what_does_not_fit(module: LoraModule) -> bool:
    """Whether a table row of too much shared memory ends in OutOfResources and not in a launch."""
    greedy = ShrinkConfig(block_n=64, block_k=512, split_k=1, num_warps=4, num_stages=4)
    row = ExpandConfig(block_n=128, block_r=16, num_warps=4, num_stages=2)
    table = BlockTable(((Bounds(16), greedy),), ((Bounds(16), row),))
    try:
        launch(
            TritonLoraOps([module], max_rank=RANK, max_tokens=8, blocks=table, dependent=False), module, 1, 1
        )
    except OutOfResources:
        return True
    return False


def main() -> int:
    """Sweep, then print."""
    driver = RecordingDriver()
    triton.runtime.driver.set_active(driver)
    module = made_module()
    ops = TritonLoraOps([module], max_rank=64, max_tokens=256, dependent=True)
    steps = {}
    for num_tokens in BATCHES:
        begin = len(driver.launches)
        launch(ops, module, num_tokens, min(num_tokens, 20))
        steps[num_tokens] = driver.launches[begin:]
    swept = compilations()
    begin = len(driver.launches)
    launch(ops, module, 64, 40)  # more tiles: the next row of the table
    print(
        json.dumps(
            {
                "steps": steps,
                "compilations": swept,
                "of_next_row": driver.launches[begin:],
                "compilations_of_two_rows": compilations(),
                "out_of_resources": refuses_what_does_not_fit(module),
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
