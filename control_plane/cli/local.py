"""The processes of one machine: Valkey, a control plane and a worker, under one state directory.

Owns their pid files and logs. Starting is idempotent: what runs already is left alone, what died is
started again. Knows nothing of what the processes do but that the control plane's health service
says when all of it is ready.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from control_plane.cli.connection import PLAIN, TlsFiles
from control_plane.store.valkey import EmbeddedValkey

STOP_TIMEOUT_S = 15.0
CONTROL_PLANE_TIMEOUT_S = 30.0
LOG_TAIL_LINES = 15
POLL_S = 0.05


class StartFailed(OSError):
    """A process ended at its start, or readiness did not come in time; the message has its log's end."""


@dataclass(frozen=True, slots=True)
class Component:
    """One process: `python -m <module>` with its environment."""

    name: str
    module: str
    environment: Mapping[str, str]


def valkey_of(state_dir: Path) -> EmbeddedValkey:
    """The Valkey of a state directory; it outlives the command that starts it."""
    return EmbeddedValkey(state_dir / "valkey", die_with_parent=False)


class LocalStack:
    """The processes of one state directory, started in their own sessions."""

    def __init__(
        self,
        state_dir: Path,
        endpoint: str,
        components: tuple[Component, ...],
        tls: TlsFiles = PLAIN,
    ) -> None:
        self._tls = tls
        self._state_dir = state_dir
        self._endpoint = endpoint
        self._components = components
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._valkey = valkey_of(state_dir)

    def start(self) -> list[str]:
        """Start what does not run; return the names of what was started."""
        (self._state_dir / "logs").mkdir(parents=True, exist_ok=True)
        (self._state_dir / "run").mkdir(parents=True, exist_ok=True)
        started = []
        if self.pid("valkey") is None:
            self._valkey.start()
            self._pid_file("valkey").write_text(str(self._valkey.pid))
            started.append("valkey")
        for component in self._components:
            if self.pid(component.name) is None:
                self._spawn(component)
                started.append(component.name)
            if component.name == "control-plane":
                # It writes the worker's key at its first start.
                self._await("liveness", CONTROL_PLANE_TIMEOUT_S)
        return started

    def await_ready(self, timeout_s: float) -> None:
        """Return when the control plane says that it and a worker are ready; raise StartFailed."""
        self._await("readiness", timeout_s)

    def stop(self) -> list[str]:
        """Stop what runs, the last started first; return their names."""
        stopped = []
        for name in ("worker", "control-plane", "valkey"):
            pid = self.pid(name)
            if pid is not None:
                _terminate(pid, self._children.get(name))
                stopped.append(name)
            self._pid_file(name).unlink(missing_ok=True)
        return stopped

    def pid(self, name: str) -> int | None:
        """Process id of a component that lives, or None."""
        child = self._children.get(name)
        if child is not None and child.poll() is not None:
            return None
        try:
            pid = int(self._pid_file(name).read_text())
        except (FileNotFoundError, ValueError):
            return None
        return pid if _alive(pid) else None

    def _await(self, service: str, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        with self._tls.channel(self._endpoint) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            while not _serving(stub, service):
                self._raise_for_dead()
                if time.monotonic() > deadline:
                    raise StartFailed(f"no {service} after {timeout_s:.0f} s\n{self._log_tails()}")
                time.sleep(POLL_S)

    def _pid_file(self, name: str) -> Path:
        return self._state_dir / "run" / f"{name}.pid"

    def _log_file(self, name: str) -> Path:
        return self._state_dir / "logs" / f"{name}.log"

    def _spawn(self, component: Component) -> None:
        with self._log_file(component.name).open("ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", component.module],
                env={**os.environ, **component.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Its own session: a Ctrl-C of the terminal is for `up` to pass on, in order.
                start_new_session=True,
            )
        self._children[component.name] = child
        self._pid_file(component.name).write_text(str(child.pid))

    def _raise_for_dead(self) -> None:
        for name, child in self._children.items():
            if child.poll() is not None:
                raise StartFailed(f"{name} ended with exit code {child.returncode}\n{self._log_tails(name)}")

    def _log_tails(self, *names: str) -> str:
        tails = []
        for name in names or [component.name for component in self._components]:
            path = self._log_file(name)
            lines = path.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:] if path.exists() else []
            tails.append("\n".join([f"--- {path}", *lines]))
        return "\n".join(tails)


def _serving(stub: health_pb2_grpc.HealthStub, service: str) -> bool:
    try:
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=1.0)
    except grpc.RpcError:
        return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _alive(pid: int) -> bool:
    try:
        # A zombie answers signals too; only its state tells.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        pass
    if Path("/proc/self/stat").exists():
        return False
    try:
        os.kill(pid, 0)  # no /proc on this system
    except ProcessLookupError:
        return False
    return True


def _terminate(pid: int, child: subprocess.Popen[bytes] | None) -> None:
    deadline = time.monotonic() + STOP_TIMEOUT_S
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        while _alive(pid):
            if child is not None:
                child.poll()
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                return
            time.sleep(POLL_S)
