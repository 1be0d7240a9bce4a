"""`loraplane up` and `down`, and the README's own lines, as a newcomer would type them."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.stack import ROOT

pytestmark = pytest.mark.processes
LORAPLANE = (sys.executable, "-m", "control_plane.cli")


def free_endpoint() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def loraplane(tmp_path):
    environment = {
        **os.environ,
        "LORAPLANE_STATE_DIR": str(tmp_path / "state"),
        "LORAPLANE_KV_CACHE_BYTES": "4000000",
    }

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*LORAPLANE, *arguments],
            check=False,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    yield run
    run("down")


def pids(state: Path) -> dict[str, int]:
    return {path.stem: int(path.read_text()) for path in (state / "run").glob("*.pid")}


def test_up_starts_what_does_not_run_and_down_stops_it(loraplane, tiny, tmp_path):
    up = ("up", "-d", "--model", str(tiny.model), "--max-lora-rank", "16", "--endpoint", free_endpoint())
    first = loraplane(*up)
    assert first.returncode == 0, first.stderr
    assert "starting valkey, control-plane, worker" in first.stdout
    started = pids(tmp_path / "state")

    assert "already running" in loraplane(*up).stdout
    assert pids(tmp_path / "state") == started

    os.kill(started["worker"], signal.SIGKILL)
    again = loraplane(*up)
    assert "starting worker …" in again.stdout
    assert pids(tmp_path / "state") | {"worker": 0} == started | {"worker": 0}

    assert loraplane("worker", "list").stdout.count("worker-0") == 1
    assert loraplane("down").stdout.strip() == "stopped worker, control-plane, valkey"
    assert loraplane("down").stdout.strip() == "nothing was running"


def test_a_worker_that_cannot_start_is_said_with_the_end_of_its_log(loraplane, tmp_path):
    result = loraplane("up", "-d", "--model", str(tmp_path / "nowhere"), "--endpoint", free_endpoint())
    assert result.returncode == 1
    assert "worker ended with exit code 2" in result.stderr
    assert "nowhere" in result.stderr


def test_the_admin_key_is_nobody_elses_to_read(loraplane, tiny, tmp_path):
    loraplane("up", "-d", "--model", str(tiny.model), "--max-lora-rank", "16", "--endpoint", free_endpoint())
    for name in ("admin.key", "worker.key"):
        assert (tmp_path / "state" / name).stat().st_mode & 0o077 == 0


@pytest.fixture
def reader(tmp_path):
    """Runs commands as the README's reader would: in a checkout, but with a state of its own."""
    for name in ("build", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    environment.pop("LORAPLANE_STATE_DIR", None)

    def run(*command: str) -> str:
        done = subprocess.run(
            command, check=False, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def readme_blocks() -> tuple[str, str, str]:
    """The shell lines, the client and the engine in process."""
    section = (ROOT / "README.md").read_text().partition("## Register an adapter")[2]
    shell, client, local = re.findall(r"```(?:python)?\n(.*?)```", section, flags=re.DOTALL)[:3]
    return shell, client, local


@pytest.mark.model
def test_the_readmes_lines_and_its_client_work_as_they_stand(reader):
    shell, client, _ = readme_blocks()
    endpoint = free_endpoint()
    lines, _, after = shell.replace("loraplane up ", f"loraplane up --endpoint {endpoint} ").partition(
        "loraplane down"
    )
    assert after == "\n"
    try:
        printed = reader("bash", "-euc", lines.replace("loraplane adapter publish", "true"))
        assert "worker-0" in printed
        assert len(reader(sys.executable, "-c", client.replace("127.0.0.1:8470", endpoint)).strip()) > 20
    finally:
        reader("loraplane", "down")


@pytest.mark.model
def test_the_readmes_engine_in_process_works_as_it_stands(reader):
    _, _, local = readme_blocks()
    assert len(reader(sys.executable, "-c", local).strip()) > 20
