"""The worker's command line: settings first, torch only once there is something to serve."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Whoever imports a module that is None fails.
WITHOUT_TORCH = (
    "import sys, runpy; sys.modules['torch'] = sys.modules['transformers'] = None\n"
    "runpy.run_module('data_plane', run_name='__main__', alter_sys=True)"
)


def worker(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *arguments],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env={name: value for name, value in os.environ.items() if not name.startswith("LORAPLANE_")},
    )


def test_help_needs_no_torch():
    done = worker("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "--max-loras" in done.stdout


def test_a_bad_setting_is_refused_without_torch():
    done = worker("--model", "base", "--max-lora-rank", "7")
    assert done.returncode == 2
    assert done.stderr.startswith("worker does not start:")
    assert "max_lora_rank: 7 must be one of" in done.stderr


def test_a_refusal_shows_no_other_setting():
    done = worker("--model", "base", "--hub-token", "hunter2", "--s3-access-key-id", "me")
    assert done.returncode == 2
    expected = "worker does not start: s3_access_key_id and s3_secret_access_key go together"
    assert done.stderr.strip() == expected


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OMP_WAIT_POLICY", "PASSIVE"),
        ("GOMP_SPINCOUNT", "20000"),
        ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "320"),
        ("LRU_CACHE_CAPACITY", "320"),
    ],
)
@pytest.mark.parametrize("given", ["", "7"])
def test_what_torch_reads_once_is_set_before_it_unless_the_environment_has_it(
    variable: str, value: str, given: str
):
    code = f"import sys, data_plane.config, os; print(os.environ[{variable!r}], 'torch' in sys.modules)"
    environment = {name: kept for name, kept in os.environ.items() if name != variable}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        env=environment | ({variable: given} if given else {}),
    )
    assert done.stdout.split() == [given or value, "False"]
