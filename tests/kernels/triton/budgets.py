"""Every row of the block tables, compiled for every target and held against a budget.

    python -m tests.kernels.triton.budgets [--targets sm_90 …] [--json FILE] [--golden] [--compare] [--all]

Prints one line a launch; ends with 1 where one is over its budget. `--golden` writes the golden
file of the installed Triton; `--compare` ends with 1 where something differs from it, or there is
none; `--all` adds every row's other specialisations and the KV write, see `variants`. Rows that
differ in the split alone are one launch here.
"""

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import cache
from pathlib import Path

import triton

from tests.kernels.triton.golden_check import differences, golden_file
from tests.kernels.triton.launch import Launch, measure
from tests.kernels.triton.launches import launches
from tests.kernels.triton.targets import MAX_SHARED, TARGETS, Resources, programs_per_sm
from tests.kernels.triton.variants import variants

KV_REGISTERS = 48  # of a launch of one warp, of which a multiprocessor must hold many


def over_budget(launch: Launch, target: str, used: Resources) -> list[str]:
    """What is wrong with a compiled launch; empty: nothing."""
    if launch.name.startswith("kv_write"):
        return _over_kv_budget(used)
    shrinks, cuda = "shrink" in launch.name, target != "gfx942"
    wrong = {
        "no matrix instruction": not used.tensor_core,
        "atomics": used.atomics > 0,
        f"shared memory over {MAX_SHARED[target]}": used.shared_bytes > MAX_SHARED[target],
        # Without wide copies the tiles are loaded through registers: right, and slow.
        f"{used.spills} spills": launch.hinted and used.spills > 0,
        "async copies under 16 bytes": launch.hinted and used.narrow_async_copies > 0,
        "weights not copied asynchronously": cuda
        and launch.streams
        and launch.hinted
        and not used.async_copies,
        "no 16-byte load": launch.hinted
        and not (cuda and launch.streams)
        and not used.wide_loads + used.async_copies,
        "narrow stores of the output": cuda
        and launch.hinted
        and not shrinks
        and used.stores != used.wide_stores,
        "under 2 programs a multiprocessor": cuda
        and launch.decode
        and launch.hinted
        and programs_per_sm(target, used, launch.num_warps) < 2,
        "released before it waited": "R" in used.dependent and "W" not in used.dependent.partition("R")[0],
        f"before it waits: {', '.join(used.early)}": bool(used.early),
        "not a dependent launch": launch.constants.get("DEPENDENT") and "W" not in used.dependent,
    }
    return [what for what, holds in wrong.items() if holds]


def _over_kv_budget(used: Resources) -> list[str]:
    wrong = {
        "atomics": used.atomics > 0,
        f"{used.spills} spills": used.spills > 0,
        "shared memory": used.shared_bytes > 0,
        f"over {KV_REGISTERS} registers": used.registers > KV_REGISTERS,
        "not one store a load": used.stores < 2,
    }
    return [what for what, holds in wrong.items() if holds]


@cache
def _rows(target: str, everything: bool) -> tuple[list[Launch], list[Launch]]:
    """The tables' rows, and their other specialisations."""
    rows = list(launches(target))
    return rows, list(variants(rows)) if everything else []


def _measured(target: str, everything: bool, place: int) -> Resources:
    # A kernel does not travel between processes; its place in the list does.
    rows, more = _rows(target, everything)
    return measure([*rows, *more][place], target)


def measurements(
    target: str, everything: bool, pool: ProcessPoolExecutor
) -> Iterator[tuple[Launch, Resources, bool]]:
    """Every launch in order, what it takes, and whether it is a table's row; all cores compile."""
    rows, more = _rows(target, everything)
    count = len(rows) + len(more)
    found = pool.map(_measured, [target] * count, [everything] * count, range(count))
    for place, (launch, used) in enumerate(zip([*rows, *more], found, strict=True)):
        yield launch, used, place < len(rows)


def main(arguments: list[str]) -> int:
    """Compile, print, compare; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--golden", action="store_true")
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    options = parser.parse_args(arguments)
    found, failures, more = {}, {}, 0
    print(f"{'launch':54s} {'target':7s} regs spill shared  mma ld16 async st16/st dependent")
    # Started anew: a forked process inherits threads' locks.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=spawn) as pool:
        for target in options.targets:
            for launch, used, of_table in measurements(target, options.all, pool):
                key = f"{launch.name}@{target}"
                # The golden file knows the table's rows alone.
                if of_table:
                    found[key] = asdict(used)
                else:
                    more += 1
                wrong = over_budget(launch, target, used)
                if wrong:
                    failures[key] = wrong
                print(
                    f"{launch.name:54s} {target:7s} {used.registers:4d} {used.spills:5d} "
                    f"{used.shared_bytes:6d} {used.tensor_core:4d} {used.wide_loads:4d} "
                    f"{used.async_copies:5d} {used.wide_stores:4d}/{used.stores:<4d} "
                    f"{used.dependent} {'OVER: ' + '; '.join(wrong) if wrong else ''}",
                    flush=True,
                )
    print(f"{len(found) + more} launches by Triton {triton.__version__}, {len(failures)} over budget")
    if options.golden:
        golden_file().write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    differing = differences(found, golden_file()) if options.compare else []
    for difference in differing:
        print(f"NOT PROVED: {difference}")
    if options.json:
        options.json.write_text(json.dumps({"found": found, "over": failures}))
    return int(bool(failures or differing))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
