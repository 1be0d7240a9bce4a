"""`loraplane up`, `down`, `control-plane` and `worker`: commands that start and stop processes."""

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer

from control_plane.cli.connection import DEFAULT_ENDPOINT, DEFAULT_STATE_DIR, TlsFiles, write_client_file
from control_plane.cli.failures import reported
from control_plane.cli.local import Component, LocalStack, valkey_of
from control_plane.cli.output import console, print_object

PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
READY_TIMEOUT_S = 300.0
SUPERVISE_EVERY_S = 1.0

StateDir = Annotated[
    Path, typer.Option(envvar="LORAPLANE_STATE_DIR", help="where data, logs, keys and pid files are kept")
]

AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]


def up(
    model: Annotated[
        Path | None, typer.Option(envvar="LORAPLANE_MODEL", help="directory of the base model")
    ] = None,
    adapter_root: Annotated[
        list[Path] | None, typer.Option(help="a directory adapters may be read from; repeat for more")
    ] = None,
    max_loras: Annotated[int, typer.Option(min=1, help="distinct adapters in one step")] = 4,
    max_lora_rank: Annotated[int, typer.Option(help="largest rank served")] = 64,
    endpoint: Annotated[str, typer.Option(help="where the control plane listens")] = DEFAULT_ENDPOINT,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="return when ready")] = False,
    as_json: AsJson = False,
) -> None:
    """Start Valkey, a control plane and one worker; what runs already is left alone."""
    if model is None:
        raise typer.BadParameter("say which model to serve", param_hint="--model or LORAPLANE_MODEL")
    state_dir = state_dir.absolute()
    stack = _stack(
        state_dir, endpoint, model.absolute(), [root.absolute() for root in adapter_root or ()],
        max_loras, max_lora_rank,
    )  # fmt: skip
    with reported():
        started = stack.start()
        if not as_json:
            console.print(f"starting {', '.join(started)} …" if started else "already running")
        stack.await_ready(READY_TIMEOUT_S)
    key_file = state_dir / "admin.key"
    write_client_file(state_dir, endpoint, key_file)
    if as_json:
        places = {"admin_key_file": str(key_file), "logs": str(state_dir / "logs")}
        print_object({"endpoint": endpoint, "started": started, **places})
    else:
        console.print(
            f"ready: endpoint {endpoint}, admin key in {_short(key_file)}, "
            f"logs in {_short(state_dir / 'logs')}"
        )
    if not detach:
        _supervise(stack)


def _short(path: Path) -> str:
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def _stack(
    state_dir: Path, endpoint: str, model: Path, roots: list[Path], max_loras: int, max_lora_rank: int
) -> LocalStack:
    shared = {
        "LORAPLANE_STATE_DIR": str(state_dir),
        "LORAPLANE_ADAPTER_ROOTS": os.pathsep.join(str(root) for root in roots),
    }
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    control_plane_ = Component(
        "control-plane",
        "control_plane",
        {
            **shared,
            "LORAPLANE_LISTEN": endpoint,
            "LORAPLANE_REDIS_URL": valkey_of(state_dir).url,
            # One person's machine: what `up` serves is there to be changed, unless said otherwise.
            "LORAPLANE_ALLOW_ADAPTER_CHANGES": os.environ.get("LORAPLANE_ALLOW_ADAPTER_CHANGES", "true"),
        },
    )
    worker_ = Component(
        "worker",
        "data_plane",
        {
            **shared,
            "LORAPLANE_MODEL": str(model),
            "LORAPLANE_CONTROL_PLANE": endpoint,
            "LORAPLANE_WORKER_KEY_FILE": str(state_dir / "worker.key"),
            "LORAPLANE_MAX_LORAS": str(max_loras),
            "LORAPLANE_MAX_LORA_RANK": str(max_lora_rank),
            # Twice the slots, so that an adapter that leaves its slot is still near.
            "LORAPLANE_MAX_CPU_LORAS": os.environ.get("LORAPLANE_MAX_CPU_LORAS", str(2 * max_loras)),
            # Threads that spin while they wait take the cores from the other processes.
            "OMP_WAIT_POLICY": "PASSIVE",
        },
    )
    # Both processes inherit the settings; one certificate serves them all on one machine.
    return LocalStack(state_dir, endpoint, (control_plane_, worker_), TlsFiles.of(os.environ))


def _supervise(stack: LocalStack) -> None:
    """Start again what dies, until Ctrl-C or SIGTERM; then stop everything in order."""
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    console.print("Ctrl-C stops everything")
    while not stopping.wait(SUPERVISE_EVERY_S):
        for name in stack.start():
            console.print(f"{name} had died: started again")
    console.print(f"stopped {', '.join(stack.stop())}")


def down(state_dir: StateDir = DEFAULT_STATE_DIR, as_json: AsJson = False) -> None:
    """Stop what `up` started."""
    stopped = LocalStack(state_dir.absolute(), DEFAULT_ENDPOINT, ()).stop()
    if as_json:
        print_object({"stopped": stopped})
        return
    console.print(f"stopped {', '.join(stopped)}" if stopped else "nothing was running")


def control_plane(context: typer.Context) -> None:
    """Run a control plane in the foreground; `--help` lists its settings."""
    _become("control_plane", context.args)


def worker(context: typer.Context) -> None:
    """Run a worker in the foreground; `--help` lists its settings."""
    _become("data_plane", context.args)


def _become(module: str, arguments: list[str]) -> None:
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])  # noqa: S606
