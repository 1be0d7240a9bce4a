"""`loraplane adapter watch` and `worker watch`: what changes, a line or a JSON document each, until Ctrl-C.

A watch of adapters that ends says from which version to go on, so that nothing is missed in between.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import grpc
import typer
from google.protobuf.message import Message

from control_plane.cli import adapters, workers
from control_plane.cli.command import Session
from control_plane.cli.output import enum_label, note, print_json, print_line, short_digest
from protos.fleet.v1 import fleet_pb2, fleet_pb2_grpc
from protos.registry.v1 import registry_pb2, registry_pb2_grpc

ADAPTER_COLUMNS = {"version": 9, "change": 9, "adapter": 32, "revision": 9, "digest": 20, "state": 0}
WORKER_COLUMNS = {"worker": 24, "state": 9, "running": 8, "waiting": 8, "held": 0}


@dataclass(slots=True)
class _Position:
    """From where to go on; empty: from the present state."""

    version: str = ""


class _Lines:
    """Events as they come; the first brings the columns' names with it."""

    def __init__(self, session: Session, columns: dict[str, int]) -> None:
        self._as_json = session.as_json
        self._columns = columns
        self._headed = False

    def show(self, event: Message, cells: tuple[object, ...]) -> None:
        """Print one."""
        if self._as_json:
            print_json(event, indent=None)
            return
        if not self._headed:
            print_line(self._columns, self._columns.values())
            self._headed = True
        print_line(cells, self._columns.values())


@contextmanager
def _resumable(position: _Position) -> Iterator[None]:
    """Say from where to go on when the watch inside the block ends."""
    try:
        yield
    except (KeyboardInterrupt, grpc.RpcError) as end:
        if position.version:
            note(f"go on with --from-version {position.version}")
        if isinstance(end, grpc.RpcError):
            raise


def watch_adapters(
    session: Session,
    tenant: adapters.Tenant = "",
    from_version: Annotated[str, typer.Option(help="what came after it; default: what there is first")] = "",
) -> None:
    """Watch adapters: what there is, then every change."""
    request = registry_pb2.WatchAdaptersRequest(tenant=tenant, resource_version=from_version)
    position, lines = _Position(from_version), _Lines(session, ADAPTER_COLUMNS)
    with _resumable(position):
        for event in session.stream(registry_pb2_grpc.AdapterRegistryStub, "WatchAdapters", request):
            lines.show(event, _adapter_cells(event))
            position.version = event.resume_version or position.version


def watch_workers(session: Session) -> None:
    """Watch workers: each as it is, then every report that changes something."""
    lines = _Lines(session, WORKER_COLUMNS)
    with _resumable(_Position()):
        for event in session.stream(
            fleet_pb2_grpc.FleetStub, "WatchWorkers", fleet_pb2.WatchWorkersRequest()
        ):
            lines.show(event, _worker_cells(event.worker))


def _adapter_cells(event: registry_pb2.AdapterEvent) -> tuple[object, ...]:
    adapter = event.adapter
    change = enum_label(registry_pb2.AdapterEvent.Type.Name(event.type), "TYPE_")
    current = next((one for one in adapter.revisions if one.number == adapter.current_revision), None)
    shown = registry_pb2.Revision() if current is None else current
    state = enum_label(registry_pb2.RevisionState.Name(shown.state), "REVISION_STATE_")
    who = f"{adapter.tenant}/{adapter.name}"
    return adapter.resource_version, change, who, shown.number, short_digest(shown.digest), state


def _worker_cells(worker: fleet_pb2.Worker) -> tuple[object, ...]:
    state = enum_label(fleet_pb2.WorkerState.Name(worker.state), "WORKER_STATE_")
    status = worker.status
    held = ", ".join(workers.held_label(one) for one in status.adapters)
    return worker.worker_id, state, status.running_requests, status.waiting_requests, held
