"""The budget can be broken: each fault of a compiled launch is named."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from tests.kernels.triton.budgets import launches, over_budget
from tests.kernels.triton.targets import Launch, Resources, programs_per_sm

GOOD = Resources(
    registers=64,
    spills=0,
    shared_bytes=16384,
    tensor_core=8,
    wide_loads=8,
    async_copies=8,
    narrow_async_copies=0,
    wide_stores=4,
    stores=4,
    atomics=0,
    dependent="WRW",
    early=[],
)
EXPAND = Launch("expand-h16", SimpleNamespace(), {}, {"BLOCK_M": 16, "DEPENDENT": True}, 4, 2)
SHRINK = replace(EXPAND, name="shrink-h16", constants={**EXPAND.constants, "BLOCK_K": 64})
PRODUCT = replace(SHRINK, name="head_product-h16")


@pytest.mark.parametrize(
    ("launch", "change", "fault"),
    [
        (EXPAND, {"spills": 3}, "3 spills"),
        (EXPAND, {"atomics": 1}, "atomics"),
        (EXPAND, {"tensor_core": 0}, "no matrix instruction"),
        (EXPAND, {"shared_bytes": 240000}, "shared memory over 232448"),
        (EXPAND, {"registers": 255}, "under 2 programs a multiprocessor"),
        (EXPAND, {"wide_stores": 3}, "narrow stores of the output"),
        (EXPAND, {"wide_loads": 0, "async_copies": 0}, "no 16-byte load"),
        (EXPAND, {"dependent": "RW"}, "released before it waited"),
        (EXPAND, {"dependent": ""}, "not a dependent launch"),
        (EXPAND, {"early": ["hidden"]}, "before it waits: hidden"),
        (SHRINK, {"narrow_async_copies": 2}, "async copies under 16 bytes"),
        (SHRINK, {"async_copies": 0}, "weights not copied asynchronously"),
        (PRODUCT, {"async_copies": 0}, "weights not copied asynchronously"),
        (PRODUCT, {"wide_stores": 3}, "narrow stores of the output"),
    ],
)
def test_a_fault_is_named(launch: Launch, change: dict[str, object], fault: str):
    assert over_budget(launch, "sm_90", GOOD) == []
    wide = replace(launch, num_warps=8) if "registers" in change else launch
    assert fault in over_budget(wide, "sm_90", replace(GOOD, **change))


def test_a_multiprocessor_holds_what_its_scarcest_resource_allows():
    assert programs_per_sm("sm_90", replace(GOOD, registers=32, shared_bytes=0), 4) == 16  # by warps
    assert programs_per_sm("sm_90", replace(GOOD, registers=128, shared_bytes=0), 4) == 4
    assert programs_per_sm("sm_90", replace(GOOD, shared_bytes=115000), 4) == 2


def test_every_table_row_is_compiled_under_a_name_of_its_own():
    names = [launch.name for launch in launches("sm_80")]
    assert len(names) == len(set(names)) >= 24
