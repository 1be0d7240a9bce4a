"""The budget can be broken: each fault of a compiled launch is named."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from tests.kernels.triton.budgets import over_budget
from tests.kernels.triton.end_launches import end_launches
from tests.kernels.triton.launch import Launch
from tests.kernels.triton.launches import launches, projection_launches
from tests.kernels.triton.targets import Resources, programs_per_sm
from tests.kernels.triton.variants import variants

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
EXPAND = Launch("expand-h16", SimpleNamespace(), {"BLOCK_M": 16, "DEPENDENT": True}, 4, 2)
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


def test_a_row_has_every_specialisation_and_all_have_names_of_their_own():
    rows = list(projection_launches("sm_90"))
    more = list(variants(rows))
    names = [launch.name for launch in (*rows, *more)]
    assert len(names) == len(set(names))
    for row in rows:
        own = [launch for launch in more if launch.name.startswith(f"{row.name}-")]
        assert {launch.dtype for launch in own} == {"bf16", "fp16"}
        assert {launch.constants["NUM_SLICES"] for launch in (row, *own)} == {1, 2, 3}
        masked = "EVEN_K" if row.name.startswith("shrink") else "EVEN_N"
        assert {launch.constants[masked] for launch in (row, *own)} == {True, False}
        if masked == "EVEN_N":
            assert {launch.constants["ALIGN"] for launch in (row, *own)} == {8, 16, 32, 64}
    assert sum(launch.name.startswith("kv_write") for launch in more) == 12


def test_a_row_of_the_ends_has_both_dtypes_masks_where_it_streams_and_odd_sizes():
    rows = list(end_launches("sm_90"))
    more = list(variants(rows))
    for row in rows:
        own = [launch for launch in more if launch.name.startswith(f"{row.name}-")]
        assert [launch.dtype for launch in own if launch.hinted] == ["fp16"]
        assert [launch.dtype for launch in own if not launch.hinted] == ["bf16"]
        assert {launch.constants.get("EVEN_K") for launch in own} == ({False} if row.streams else {None})
    names = [launch.name for launch in variants(launches("sm_90"))]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("change", "fault"),
    [({"spills": 1}, "1 spills"), ({"registers": 49}, "over 48 registers"), ({"atomics": 1}, "atomics")],
)
def test_a_fault_of_the_kv_write_is_named(change: dict[str, object], fault: str):
    launch, good = replace(EXPAND, name="kv_write-64x64"), replace(GOOD, registers=48, shared_bytes=0)
    assert over_budget(launch, "sm_90", good) == []
    assert over_budget(launch, "sm_90", replace(good, **change)) == [fault]


def test_a_launch_whose_sizes_are_no_multiples_of_16_may_be_slow_and_nothing_else():
    odd = replace(SHRINK, hinted=False)
    slow = replace(GOOD, narrow_async_copies=2, async_copies=0, spills=138, registers=255)
    assert over_budget(odd, "sm_90", slow) == []
    for change, fault in (
        ({"atomics": 1}, "atomics"),
        ({"early": ["x"]}, "before it waits: x"),
        ({"tensor_core": 0}, "no matrix instruction"),
        ({"shared_bytes": 240000}, "shared memory over 232448"),
    ):
        assert over_budget(odd, "sm_90", replace(slow, **change)) == [fault]


def test_every_table_row_is_compiled_under_a_name_of_its_own():
    names = [launch.name for launch in launches("sm_80")]
    assert len(names) == len(set(names)) >= 24
