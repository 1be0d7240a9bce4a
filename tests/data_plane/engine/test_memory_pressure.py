"""Every tier driven over its bound at once: nothing crashes or grows, refusals are RESOURCE_EXHAUSTED."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data_plane.engine.pressure import NUM_ADAPTERS, Report

# 320 compiled products of 0.6 MB (data_plane/onednn.py), and what threads and allocator take.
PLATEAU_BYTES = 320 << 20
ROOT = Path(__file__).parents[3]
GROWTH_BYTES = 16 << 20  # a busy machine is still warming up; caches without a bound grew by 53 MiB


def press(seconds: int, cpu_kernels: str, directory: Path) -> Report:
    child = subprocess.run(
        [sys.executable, "-m", "tests.data_plane.engine.pressure", str(seconds), cpu_kernels, str(directory)],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=seconds + 120,
    )
    assert child.returncode == 0, child.stderr[-4000:]
    return Report(**json.loads(child.stdout.splitlines()[-1]))


@pytest.mark.processes  # `make check` has no half a minute for it
@pytest.mark.parametrize("seconds", [4, pytest.param(60, marks=pytest.mark.slow)])
@pytest.mark.parametrize("cpu_kernels", ["auto", "torch"])  # torch: oneDNN compiles for each token count
def test_over_every_bound_the_worker_sheds_queues_refuses_and_goes_on(
    seconds: int, cpu_kernels: str, tmp_path: Path
):
    report = press(seconds, cpu_kernels, tmp_path)
    plateau_bytes = report.warm_bytes - report.start_bytes
    early = statistics.median(report.samples_bytes[: len(report.samples_bytes) // 4])
    late = statistics.median(report.samples_bytes[-len(report.samples_bytes) // 4 :])
    print(
        f"{cpu_kernels}, {seconds} s: {report.ends}, tiers {report.tiers}, "
        f"plateau {plateau_bytes >> 20} MiB above the start, then {(late - early) / 2**20:+.1f} MiB"
    )
    assert report.ends.keys() <= {"finished", "Overloaded"}, report.ends
    assert report.ends["Overloaded"] > 0, "the queue was never over its bound"
    assert report.ends["finished"] > 20  # however slow the machine: the rest was refused
    assert report.refused_commands.keys() <= {"Overloaded", "AdapterUnknown", "Draining"}
    assert report.refused_commands["Overloaded"], "the slots were never over their bound"
    assert report.tiers["source"] > NUM_ADAPTERS / 2, "every tier was left again"
    assert report.tiers["disk"] > 0
    assert report.disk_bytes_used <= report.disk_bytes
    assert report.disk_bytes_found <= report.disk_bytes
    assert plateau_bytes < PLATEAU_BYTES, "what was compiled for each number of tokens was kept"
    assert late - early < GROWTH_BYTES, f"grows: {[sample >> 20 for sample in report.samples_bytes]} MiB"
