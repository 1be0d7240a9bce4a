"""No kernel touches what the launch before it wrote until it has waited: read from the PTX."""

import json
from typing import Any

import pytest

from tests.kernels.triton.dependence import EXPAND, LEAVES, SHRINK, accesses, early
from tests.kernels.triton.test_compiled import run_module

PTX = """
.visible .entry k(
	.param .u64 k_param_0,
	.param .u64 k_param_1
)
{
	ld.param.b64 	%rd1, [k_param_0];
	ld.param.b64 	%rd2, [k_param_1];
	ld.global.b32 { %r1 }, [ %rd2 + 0 ];
	@%p1 bra 	$L__BB0_2;
	griddepcontrol.wait ;
	mad.wide.s32 	%rd3, %r1, 4, %rd1;
$L__BB0_1:
	@%p2 ld.global.b32 { %r2 }, [ %rd3 + 0 ];
	@%p3 bra 	$L__BB0_1;
$L__BB0_2:
	ret;
}
"""


def test_an_access_counts_for_the_pointer_that_its_address_is_computed_from():
    assert accesses(PTX, ("x", "tiles")) == {"x", "tiles"}
    assert early(PTX, ("x", "tiles"), ("x", "tiles")) == [LEAVES, "tiles"]


def test_a_wait_that_one_path_goes_around_is_none():
    around = PTX.replace("bra 	$L__BB0_2", "bra 	$L__BB0_1")
    assert early(around, ("x", "tiles"), ("x",)) == [LEAVES, "x"]


def test_every_path_waits():
    waits = PTX.replace("$L__BB0_2:", "$L__BB0_2:\n\tgriddepcontrol.wait ;")
    assert early(waits, ("x", "tiles"), ("x",)) == []


@pytest.fixture(scope="module")
def compiled() -> dict[str, Any]:
    return json.loads(run_module("dependence").splitlines()[-1])


def test_the_kernels_as_they_are_touch_nothing_early(compiled: dict[str, Any]):
    assert len(compiled["as they are"]) == 3
    assert not any(compiled["as they are"].values())


@pytest.mark.parametrize(
    ("name", "fault"),
    [(name, LEAVES if "does not wait" in name else "x") for name in SHRINK]
    + [(name, LEAVES if "does not wait" in name else "hidden") for name in EXPAND],
)
def test_a_launch_that_does_not_wait_in_time_is_caught(name: str, fault: str, compiled: dict[str, Any]):
    assert fault in compiled["broken"][name]
