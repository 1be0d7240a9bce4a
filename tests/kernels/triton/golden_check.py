"""Compiled launches against the golden file of the installed Triton: what no other build may make worse."""

import json
from pathlib import Path
from typing import Any

import triton

DIRECTORY = Path(__file__).with_name("golden")
REGISTER_SLACK = 8  # what another build of the same compiler may differ by
EQUAL = ("tensor_core", "wide_loads", "async_copies", "dependent")


def golden_file(version: str = triton.__version__) -> Path:
    """Of one Triton."""
    return DIRECTORY / f"{version}.json"


def differences(found: dict[str, Any], file: Path) -> list[str]:
    """What is worse or other than in `file`; a file that is not there is one, too."""
    if not file.exists():
        return [f"no golden file {file.name}: nothing was compared; `budgets --golden` makes one"]
    golden = json.loads(file.read_text())
    faults = []
    for name, used in found.items():
        known = golden.get(name)
        if known is None:
            faults.append(f"{name}: is not in {file.name}")
            continue
        if used["registers"] > known["registers"] + REGISTER_SLACK:
            faults.append(f"{name}: {used['registers']} registers, {known['registers']} were known")
        if used["shared_bytes"] > known["shared_bytes"]:
            faults.append(f"{name}: {used['shared_bytes']} shared bytes, {known['shared_bytes']} were known")
        faults += [
            f"{name}: {kind} is {used[kind]!r}, {known[kind]!r} was known"
            for kind in EQUAL
            if used[kind] != known[kind]
        ]
    return faults
