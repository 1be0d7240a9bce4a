"""The process: starts with nothing but a directory, keeps what it was told, ends on SIGTERM."""

import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from protos.quota.v1 import quota_pb2, quota_pb2_grpc

pytestmark = pytest.mark.processes


@contextmanager
def control_plane(state_dir: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A control plane with an embedded Valkey, and its address."""
    command = [
        sys.executable,
        "-m",
        "control_plane",
        "--state-dir",
        str(state_dir),
        "--listen",
        "127.0.0.1:0",
    ]
    process = subprocess.Popen([*command, "--log-format", "json", *flags], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        address, deadline = "", time.monotonic() + 30
        while not address and time.monotonic() < deadline:
            line = process.stderr.readline()
            found = re.search(r'"address": "([^"]+)"', line)
            address = found[1] if found else ""
            assert line, "it ended before it served"
        yield process, address
    finally:
        process.kill()
        process.wait()


def test_starts_with_keys_of_its_own_keeps_quotas_over_kill_9_and_ends_on_sigterm(tmp_path: Path) -> None:
    with control_plane(tmp_path) as (process, address):
        key_file = tmp_path / "admin.key"
        assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
        assert stat.S_IMODE((tmp_path / "worker.key").stat().st_mode) == 0o600
        with grpc.insecure_channel(address) as channel:
            quota = quota_pb2.Quota(tenant="acme", limits=quota_pb2.Limits(requests_per_minute=7))
            quota_pb2_grpc.TenantQuotasStub(channel).SetQuota(
                quota_pb2.SetQuotaRequest(quota=quota), metadata=_as(key_file), timeout=5
            )
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    with control_plane(tmp_path) as (process, address):
        with grpc.insecure_channel(address) as channel:
            got = quota_pb2_grpc.TenantQuotasStub(channel).GetQuota(
                quota_pb2.GetQuotaRequest(tenant="acme"), metadata=_as(key_file), timeout=5
            )
        assert got == quota
        process.terminate()
        assert process.wait(timeout=15) == 0


def test_a_bad_setting_is_one_message_and_exit_code_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "control_plane", "--listen", "0.0.0.0:1", "--state-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert "allow_insecure" in done.stderr
    assert "Traceback" not in done.stderr


def _as(key_file: Path) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key_file.read_text().strip()}"),)
