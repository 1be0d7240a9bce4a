"""What the compilers make of the kernels, in processes where nothing is interpreted."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import triton

from kernels.lora.triton.configs import load_table
from tests.kernels.triton.golden_check import differences, golden_file
from tests.kernels.triton.targets import MAX_SHARED, backend_of


def run_module(name: str, *arguments: str) -> str:
    # A cache beside the other build products: the second run compiles nothing.
    cache = Path("build/triton-cache").absolute()
    done = subprocess.run(
        [sys.executable, "-m", f"tests.kernels.triton.{name}", *arguments],
        capture_output=True,
        text=True,
        timeout=280,
        env={"PATH": "/usr/bin:/bin", "TRITON_CACHE_DIR": str(cache), "HOME": str(cache)},
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def budgets(directory: Path, *targets: str) -> dict[str, Any]:
    file = directory / "budgets.json"
    run_module("budgets", "--json", str(file), "--targets", *targets)
    return json.loads(file.read_text())["found"]


def check_golden(found: dict[str, Any]) -> None:
    if not golden_file().exists():
        # `make kernels` ends with 1 instead.
        pytest.skip(f"no golden file of Triton {triton.__version__}: make it by `budgets --golden`")
    assert differences(found, golden_file()) == []


def test_every_table_row_is_within_its_budget_on_hopper(tmp_path: Path):
    check_golden(budgets(tmp_path, "sm_90"))


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_80", "sm_86", "sm_100", "gfx942"])
def test_every_table_row_is_within_its_budget_elsewhere(target: str, tmp_path: Path):
    check_golden(budgets(tmp_path, target))


@pytest.fixture(scope="module")
def dry_run() -> dict[str, Any]:
    return json.loads(run_module("dry_run").splitlines()[-1])


def test_a_sweep_of_batch_sizes_compiles_each_kernel_once_a_table_row(dry_run: dict[str, Any]):
    assert dry_run["compilations"] == {"shrink": 1, "expand": 1}
    assert dry_run["compilations_of_two_rows"] == {"shrink": 2, "expand": 2}


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_every_table_row_is_compiled_once_at_most_whatever_the_batch(target: str):
    rows = json.loads(run_module("dry_run", "--rows", "--target", target).splitlines()[-1])
    table = load_table(backend=backend_of(target))
    configs = [config for _, config in (*table.shrink_rows, *table.expand_rows)]
    # What is launched is what the budgets compile, and it fits.
    assert [row["num_stages"] for row in rows] == [config.num_stages for config in configs]
    assert max(row["shared"] for row in rows) <= MAX_SHARED[target]
    assert len(rows) == len(table.shrink_rows) + len(table.expand_rows)
    # None at all where a row before has the same block sizes.
    assert {row["row"]: row for row in rows if row["compilations"] > 1 or row["launches"] != 3} == {}
    assert sum(row["compilations"] for row in rows) >= 12


def test_a_module_is_two_launches_and_a_grid_has_a_program_for_each_tile_block_and_split(
    dry_run: dict[str, Any],
):
    for num_tokens, launches in dry_run["steps"].items():
        num_tiles = min(int(num_tokens), 20)
        assert [(launch["kernel"], launch["grid"]) for launch in launches] == [
            ("_shrink_kernel", [1, 8, num_tiles]),
            ("_expand_kernel", [(4096 + 1024 + 1024) // 256, num_tiles, 1]),
        ]


def test_a_block_size_that_no_program_can_hold_is_refused_and_not_launched(dry_run: dict[str, Any]):
    assert dry_run["out_of_resources"]
