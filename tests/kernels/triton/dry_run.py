"""Runs the real host code of the launches with no GPU: a driver that compiles but only records.

    python -m tests.kernels.triton.dry_run [--rows] [--target gfx942]

Prints JSON: compilations of each kernel over a sweep of decode batches, the launches, and whether
a block size that no GPU can hold is refused; with `--rows`, the compilations of every row of the
block table over three batches of it, and the stages and shared memory of their launches. Tensors are
on the CPU; nothing is computed.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import accumulate, pairwise
from typing import Any

import torch
import triton
from triton.backends.driver import DriverBase
from triton.runtime.errors import OutOfResources

from kernels.lora.ops import add_lora
from kernels.lora.pool import PAGE_ROWS, LoraModule, SlotRows, SlotTable
from kernels.lora.segments import build_segments
from kernels.lora.triton import expand, shrink
from kernels.lora.triton.configs import BlockTable, Bounds, ExpandConfig, ShrinkConfig, load_table
from kernels.lora.triton.ops import TritonLoraOps
from tests.kernels.triton.targets import MAX_SHARED, TARGETS
from tests.kernels.triton.tuner import Sample, sample_of

TARGET = "sm_90"
BATCHES = (1, 2, 3, 7, 8, 16, 17, 31, 32, 48, 64)
FEWER = (0, 1, 3)  # tokens than a row's sample has
NUM_SLOTS, RANK, IN_FEATURES, WIDTHS = 40, 16, 4096, (4096, 1024, 1024)


class _Utilities:
    def __init__(self, target: str) -> None:
        self._max_shared = MAX_SHARED[target]

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": self._max_shared, "multiprocessor_count": 132, "warpSize": 32}

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[int, ...]:
        return 0, 0, 0, 0, 1024


class RecordingDriver(DriverBase):
    """Stands where the CUDA driver stands."""

    def __init__(self, target: str = TARGET) -> None:
        super().__init__()
        self.utils, self.launches = _Utilities(target), list[dict[str, Any]]()
        self._target = target

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        """What Triton calls to make a launch of a compiled kernel."""

        def launch(x: int, y: int, z: int, *rest: object) -> None:
            self.launches.append(
                {
                    "kernel": source.fn.__name__,
                    "grid": (x, y, z),
                    "shared": metadata.shared,
                    "num_stages": metadata.num_stages,
                }
            )

        return launch

    @classmethod
    def is_active(cls) -> bool:
        return True

    def get_current_target(self) -> Any:
        return TARGETS[self._target]

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


def made_module(num_slots: int, rank: int, in_features: int, widths: Sequence[int]) -> LoraModule:
    """A pool of one page list per slot, whose numbers do not matter."""
    pages = rank // PAGE_ROWS
    slots = SlotTable(
        [
            SlotRows(tuple(range(slot * pages, (slot + 1) * pages)), ((rank,) * len(widths),))
            for slot in range(num_slots)
        ]
    )
    edges = [0, *accumulate(widths)]
    columns = tuple(slice(begin, end) for begin, end in pairwise(edges))
    a = torch.empty(num_slots * rank, len(widths), in_features, dtype=torch.bfloat16)
    return LoraModule(0, a, torch.empty(len(a), edges[-1], dtype=torch.bfloat16), columns, slots)


def launch(ops: TritonLoraOps, module: LoraModule, num_tokens: int, num_adapters: int) -> None:
    """One module's launches of a decode batch."""
    segments = build_segments([token % num_adapters for token in range(num_tokens)])
    x = torch.empty(num_tokens, IN_FEATURES, dtype=torch.bfloat16)
    add_lora(ops, x, module, segments, out=torch.empty(num_tokens, sum(WIDTHS), dtype=torch.bfloat16))


def compilations() -> dict[str, int]:
    """Specialisations made so far."""
    kernels = {"shrink": shrink._shrink_kernel, "expand": expand._expand_kernel}
    return {name: len(kernel.device_caches[0][0]) for name, kernel in kernels.items()}


def launch_sample(sample: Sample, fewer: int, dependent: bool) -> None:
    """The sample's kernel for a batch of its row, with `fewer` tokens."""
    module = made_module(sample.num_adapters, sample.rank, sample.in_features, sample.widths)
    ops = TritonLoraOps([module], max_rank=sample.rank, max_tokens=sample.num_tokens, dependent=dependent)
    case = sample.case(torch.bfloat16, "cpu")
    segments = build_segments(case.slots[: len(case.slots) - fewer])
    x = torch.empty(segments.num_tokens, sample.in_features, dtype=torch.bfloat16)
    hidden = ops.hidden(segments, module, x)
    if sample.kernel == "shrink":
        ops.shrink(x, module, segments, out=hidden)
    else:
        out = torch.empty(len(x), sum(sample.widths), dtype=torch.bfloat16)
        ops.expand(hidden, module, segments, out=out)


def compilations_of_rows(driver: "RecordingDriver", dependent: bool) -> list[dict[str, Any]]:
    """Of every row of the committed table: batches launched, and specialisations that they made."""
    table, found = load_table(), list[dict[str, Any]]()
    for kernel, rows in (("shrink", table.shrink_rows), ("expand", table.expand_rows)):
        for bounds, _ in rows:
            made, begin, sample = compilations()[kernel], len(driver.launches), sample_of(kernel, bounds)
            for fewer in FEWER:
                launch_sample(sample, fewer, dependent)
            own = [launch for launch in driver.launches[begin:] if launch["kernel"] == f"_{kernel}_kernel"]
            found.append(
                {
                    "row": f"{kernel} {asdict(bounds)}",
                    "launches": len(own),
                    "num_stages": max(launch["num_stages"] for launch in own),
                    "shared": max(launch["shared"] for launch in own),
                    "compilations": compilations()[kernel] - made,
                }
            )
    return found


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


def recorded() -> tuple[argparse.Namespace, RecordingDriver]:
    """The options of a dry run, and the driver that now records its launches."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", action="store_true")
    parser.add_argument("--target", choices=list(TARGETS), default=TARGET)
    options = parser.parse_args()
    driver = RecordingDriver(options.target)
    triton.runtime.driver.set_active(driver)
    if options.target.startswith("gfx"):
        torch.version.hip = "7.0"  # as a build of torch for it says
    return options, driver


def main() -> int:
    """Sweep, then print."""
    options, driver = recorded()
    if options.rows:
        print(json.dumps(compilations_of_rows(driver, dependent=options.target == TARGET)))
        return 0
    module = made_module(NUM_SLOTS, RANK, IN_FEATURES, WIDTHS)
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
