"""Every row of the block tables, compiled for every target and held against a budget.

    python -m tests.kernels.triton.budgets [--targets sm_90 …] [--json FILE] [--golden] [--compare]

Prints one line a launch; ends with 1 where one is over its budget. `--golden` writes the golden
file of the installed Triton; `--compare` ends with 1 where something differs from it, or there is
none. Rows that differ in the split alone are one launch here.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

import triton

from kernels.lora.pool import PAGE_ROWS
from kernels.lora.triton import expand, shrink
from kernels.lora.triton.configs import MAX_RANK, Bounds, load_table
from tests.kernels.triton.end_launches import end_launches
from tests.kernels.triton.golden_check import differences, golden_file
from tests.kernels.triton.targets import (
    MAX_SHARED,
    TARGETS,
    Launch,
    Resources,
    backend_of,
    compile_launch,
    programs_per_sm,
)

NUM_SLICES = 3
IN_FEATURES = {True: 768, False: 4096}  # of rows for small inputs, and of the others

POINTERS = ("x", "a", "b", "out", "hidden", "order", "tiles", "num_tiles", "pages", "ranks", "blocks")
TYPES = {
    **dict.fromkeys(POINTERS, "*i32:16"),
    **dict.fromkeys(("x", "a", "b", "out"), "*bf16:16"),
    "affines": "*i64:16",
    "hidden": "*fp32:16",
    **dict.fromkeys(("in_features", "out_features", "stride_x", "stride_out", "stride_split"), "i32:16"),
    "stride_pages": "i32",
}


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
            TYPES,
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
            yield Launch(name, expand._expand_kernel, TYPES, constants, rows.num_warps, rows.num_stages)


def over_budget(launch: Launch, target: str, used: Resources) -> list[str]:
    """What is wrong with a compiled launch; empty: nothing."""
    shrinks, cuda = "shrink" in launch.name, target != "gfx942"
    wrong = {
        "no matrix instruction": not used.tensor_core,
        "atomics": used.atomics > 0,
        f"shared memory over {MAX_SHARED[target]}": used.shared_bytes > MAX_SHARED[target],
        f"{used.spills} spills": used.spills > 0,
        "async copies under 16 bytes": used.narrow_async_copies > 0,
        "weights not copied asynchronously": cuda and launch.streams and not used.async_copies,
        "no 16-byte load": not (cuda and launch.streams) and not used.wide_loads + used.async_copies,
        "narrow stores of the output": cuda and not shrinks and used.stores != used.wide_stores,
        "under 2 programs a multiprocessor": cuda
        and launch.decode
        and programs_per_sm(target, used, launch.num_warps) < 2,
        "released before it waited": "R" in used.dependent and "W" not in used.dependent.partition("R")[0],
        f"before it waits: {', '.join(used.early)}": bool(used.early),
        "not a dependent launch": launch.constants.get("DEPENDENT") and "W" not in used.dependent,
    }
    return [what for what, holds in wrong.items() if holds]


def measure(launch: Launch, target: str) -> Resources:
    """Compile one launch."""
    return with_kernel(launch, launch.kernel, target)


def with_kernel(launch: Launch, kernel: Any, target: str) -> Resources:
    """Compile `kernel` as this launch is compiled."""
    signature = {name: launch.types[name] for name in kernel.arg_names if name in launch.types}
    return compile_launch(
        kernel,
        signature,
        launch.constants,
        target,
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
    )


def main(arguments: list[str]) -> int:
    """Compile, print, compare; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--golden", action="store_true")
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    options = parser.parse_args(arguments)
    found, failures = {}, {}
    print(f"{'launch':34s} {'target':7s} regs spill shared  mma ld16 async st16/st dependent")
    for target in options.targets:
        for launch in launches(target):
            used, key = measure(launch, target), f"{launch.name}@{target}"
            found[key] = asdict(used)
            wrong = over_budget(launch, target, used)
            if wrong:
                failures[key] = wrong
            print(
                f"{launch.name:34s} {target:7s} {used.registers:4d} {used.spills:5d} {used.shared_bytes:6d} "
                f"{used.tensor_core:4d} {used.wide_loads:4d} {used.async_copies:5d} "
                f"{used.wide_stores:4d}/{used.stores:<4d} "
                f"{used.dependent} {'OVER: ' + '; '.join(wrong) if wrong else ''}",
                flush=True,
            )
    print(f"{len(found)} launches by Triton {triton.__version__}, {len(failures)} over budget")
    if options.golden:
        golden_file().write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    differing = differences(found, golden_file()) if options.compare else []
    for difference in differing:
        print(f"NOT PROVED: {difference}")
    if options.json:
        options.json.write_text(json.dumps({"found": found, "over": failures}))
    return int(bool(failures or differing))


def _name(kernel: str, bounds: Bounds, numbers: tuple[int, ...]) -> str:
    return f"{kernel}-h{bounds.tile_height}-{'x'.join(map(str, numbers))}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
