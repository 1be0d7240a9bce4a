"""The real host code of the ends' launches with no GPU: see `dry_run`, whose driver it takes.

    python -m tests.kernels.triton.dry_run_ends [--rows] [--target gfx942]

Prints JSON, an entry a sweep of decode batches: launches by kernel with their grids, and compilations by
kernel, and the most stages and shared memory; with `--rows`, sweeps that reach every row of the block table.
"""

import json
import sys
from typing import Any

import torch

from kernels.lora.pool import SlotTable
from kernels.lora.segments import build_segments
from kernels.lora.triton.ends import expand, lookup, product, shrink
from kernels.lora.triton.ends.ops import TritonEndOps
from tests.kernels.triton.dry_run import RecordingDriver, recorded

WIDTH, VOCABULARY, NUM_SLOTS = 4096, 128256, 64
KERNELS = {
    "lookup": lookup._lookup_kernel,
    "shrink": shrink._shrink_kernel,
    "expand": expand._expand_kernel,
    "product": product._product_kernel,
}
FEW, MANY = (1, 2, 3, 7, 8), (9, 16, 17, 31, 48, 64)  # tokens, each of an adapter of its own
LONG = (128, 131, 250)  # tokens of one adapter: tall tiles


def compilations() -> dict[str, int]:
    """Specialisations made so far."""
    return {name: len(kernel.device_caches[0][0]) for name, kernel in KERNELS.items()}


def sweep(driver: RecordingDriver, rank: int, batches: tuple[int, ...], num_adapters: int) -> dict[str, Any]:
    """All four launches of every batch, of adapters up to `rank`."""
    slots, before, begin = SlotTable([None] * NUM_SLOTS), compilations(), len(driver.launches)
    ops = TritonEndOps(slots, max_rank=rank, device=torch.device("cpu"), dtype=torch.bfloat16)
    for num_tokens in batches:
        segments = build_segments([token % num_adapters for token in range(num_tokens)])
        step = ops.tiles(segments)
        ops.begin(segments, step, step)
        x, logits = (torch.empty(num_tokens, size, dtype=torch.bfloat16) for size in (WIDTH, VOCABULARY))
        ids, multiplier = torch.zeros(num_tokens, dtype=torch.int64), torch.ones(())
        ops.change_embeddings(ids, segments, multiplier=multiplier, out=torch.empty_like(x))
        ops.change_logits(x, segments, ids, out=logits)
    made = {name: count - before[name] for name, count in compilations().items()}
    own = driver.launches[begin:]
    return {
        "rank": rank,
        "batches": batches,
        "compilations": made,
        "launches": [(launch["kernel"], launch["grid"]) for launch in own],
        "num_stages": max(launch["num_stages"] for launch in own),
        "shared": max(launch["shared"] for launch in own),
    }


def main() -> int:
    """Sweep, then print."""
    options, driver = recorded()
    sweeps = [(16, FEW, NUM_SLOTS), (16, MANY, NUM_SLOTS)]
    if options.rows:
        kinds = ((FEW, NUM_SLOTS), (MANY, NUM_SLOTS), (LONG, 1))
        sweeps = [(rank, *kind) for rank in (16, 32, 64, 512) for kind in kinds]
    print(json.dumps([sweep(driver, *each) for each in sweeps]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
