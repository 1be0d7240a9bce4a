"""`loraplane top`: workers, slots, tiers, adapters and tenants, live.

What the workers report comes by WatchWorkers as it changes; what tenants use is asked for at every
refresh (`activity`). Drawing is a pure function of both. In a pipe, or with --once, one view is printed.
A stream that breaks ends the view with its error: what is shown is never older than it looks.
"""

import sys
import threading
from collections import defaultdict
from collections.abc import Iterable
from typing import Annotated

import grpc
import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table

from control_plane.cli.activity import Activity, Usages
from control_plane.cli.command import Session
from control_plane.cli.output import console, enum_label, size
from protos.fleet.v1 import fleet_pb2 as pb
from protos.fleet.v1 import fleet_pb2_grpc
from protos.inference.v1 import inference_pb2

MAX_ADAPTERS = 20  # rows; the most used first
BAR_CELLS = 10


def top(
    session: Session,
    once: Annotated[bool, typer.Option("--once", help="print one view and return")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="seconds between refreshes")] = 1.0,
) -> None:
    """Watch workers, slots, tiers, adapters and tenants."""
    workers = {worker.worker_id: worker for worker in _listed(session).workers}
    if session.as_json:
        session.show(pb.ListWorkersResponse(workers=workers.values()), lambda _: None)
    elif once or not sys.stdout.isatty():
        console.print(view(workers.values(), Activity(session).look(workers.values())))
    else:
        _watch(session, workers, every)


def _watch(session: Session, workers: dict[str, pb.Worker], every_s: float) -> None:
    following, activity = _Following(session, workers), Activity(session)
    following.start()
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while following.is_alive():
                shown = list(workers.values())
                live.update(view(shown, activity.look(shown)), refresh=True)
                following.join(every_s)
    except KeyboardInterrupt:
        return
    if following.failure is not None:
        raise following.failure


class _Following(threading.Thread):
    """Keeps workers up to date until the stream ends, and keeps why it did."""

    def __init__(self, session: Session, workers: dict[str, pb.Worker]) -> None:
        super().__init__(daemon=True)
        self._session = session
        self._workers = workers
        self.failure: grpc.RpcError | None = None

    def run(self) -> None:
        """Take every event."""
        request = pb.WatchWorkersRequest()
        try:
            for event in self._session.stream(fleet_pb2_grpc.FleetStub, "WatchWorkers", request):
                self._workers[event.worker.worker_id] = event.worker
        except grpc.RpcError as error:
            self.failure = error


def _listed(session: Session) -> pb.ListWorkersResponse:
    answer: pb.ListWorkersResponse = session.call(
        fleet_pb2_grpc.FleetStub, "ListWorkers", pb.ListWorkersRequest()
    )
    return answer


def view(workers: Iterable[pb.Worker], usages: Usages) -> Group:
    """Everything as tables, one below the other."""
    workers = sorted(workers, key=lambda worker: worker.worker_id)
    return Group(_workers(workers), "", _adapters(workers), "", _tenants(usages))


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def _workers(workers: Iterable[pb.Worker]) -> Table:
    table = _table(
        "worker", "state", "running", "waiting", "slots", "rank pool", "cpu cache", "disk", "blocks"
    )
    for worker in workers:
        status, capacity = worker.status, worker.capacity
        resident = sum(held.tier == inference_pb2.TIER_SLOT for held in status.adapters)
        table.add_row(
            worker.worker_id,
            enum_label(pb.WorkerState.Name(worker.state), "WORKER_STATE_"),
            f"{status.running_requests}/{capacity.max_num_seqs}",
            str(status.waiting_requests),
            f"{resident}/{capacity.max_loras}",
            _bar(status.slot_bytes_used, capacity.slot_bytes),
            _bar(status.cpu_bytes_used, capacity.cpu_bytes),
            _bar(status.disk_bytes_used, capacity.disk_bytes),
            f"{status.free_blocks}/{capacity.num_blocks} free",
        )
    return table


def _adapters(workers: Iterable[pb.Worker]) -> Table:
    copies: dict[tuple[str, str, int], list[tuple[str, pb.HeldAdapter]]] = defaultdict(list)
    for worker in workers:
        for held in worker.status.adapters:
            copies[held.tenant, held.name, held.revision].append((worker.worker_id, held))
    table = _table("adapter", "rank", "running", "where")
    by_use = sorted(copies.items(), key=lambda item: (-sum(held.leases for _, held in item[1]), item[0]))
    for (tenant, name, revision), found in by_use[:MAX_ADAPTERS]:
        table.add_row(
            f"{tenant}/{name}@{revision}",
            str(found[0][1].rank),
            str(sum(held.leases for _, held in found)),
            ", ".join(f"{worker_id} {_tier(held)}" for worker_id, held in found),
        )
    if len(by_use) > MAX_ADAPTERS:
        table.add_row(f"… {len(by_use) - MAX_ADAPTERS} more")
    return table


def _tenants(usages: Usages) -> Table:
    table = _table(
        "tenant", "running", "requests", "refused", "tokens", "slots", "slot bytes", "cpu", "cold loads"
    )
    for tenant, usage in usages.items():
        table.add_row(
            tenant,
            str(usage.concurrent_requests),
            str(usage.requests),
            str(usage.rejected_requests),
            str(usage.prompt_tokens + usage.completion_tokens),
            str(usage.resident_slots),
            size(usage.slot_bytes),
            size(usage.cpu_bytes),
            str(usage.cold_loads),
        )
    return table


def _tier(held: pb.HeldAdapter) -> str:
    label = enum_label(inference_pb2.Tier.Name(held.tier), "TIER_")
    return f"{label} (pinned)" if held.pinned else label


def _bar(used: int, capacity: int) -> str:
    if not capacity:
        return "–"
    filled = min(BAR_CELLS, round(BAR_CELLS * used / capacity))
    return f"{'█' * filled}{'░' * (BAR_CELLS - filled)} {size(used)} of {size(capacity)}"
