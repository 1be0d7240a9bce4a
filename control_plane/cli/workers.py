"""`loraplane worker list|get|…`: what workers hold and do."""

from collections.abc import Iterable
from typing import Annotated

import typer

from control_plane.cli.command import Session, command
from control_plane.cli.output import enum_label, print_table, short_digest, size
from protos.fleet.v1 import fleet_pb2 as pb
from protos.fleet.v1 import fleet_pb2_grpc
from protos.inference.v1 import inference_pb2

app = typer.Typer()

WorkerId = Annotated[str, typer.Argument(help="the worker")]
STUB = fleet_pb2_grpc.FleetStub


def print_workers(workers: Iterable[pb.Worker]) -> None:
    """Workers as a table."""
    columns = (
        "worker",
        "state",
        "base model",
        "running",
        "waiting",
        "free blocks",
        "slots",
        "cpu cache",
        "held",
    )
    print_table(columns, (_row(worker) for worker in workers))


def _row(worker: pb.Worker) -> tuple[object, ...]:
    status, capacity = worker.status, worker.capacity
    return (
        worker.worker_id,
        enum_label(pb.WorkerState.Name(worker.state), "WORKER_STATE_"),
        worker.base_model,
        status.running_requests,
        status.waiting_requests,
        f"{status.free_blocks}/{capacity.num_blocks}",
        f"{size(status.slot_bytes_used)} of {size(capacity.slot_bytes)}",
        f"{size(status.cpu_bytes_used)} of {size(capacity.cpu_bytes)}",
        ", ".join(held_label(adapter) for adapter in status.adapters),
    )


def held_label(adapter: pb.HeldAdapter) -> str:
    """One held revision in a word: whose, which and where."""
    tier = enum_label(inference_pb2.Tier.Name(adapter.tier), "TIER_")
    return f"{adapter.tenant}/{adapter.name}@{adapter.revision} ({tier})"


def _print_held(worker: pb.Worker) -> None:
    print_workers([worker])
    columns = ("adapter", "revision", "digest", "rank", "tier", "bytes", "leases", "pinned", "idle")
    print_table(
        columns,
        (
            (
                f"{one.tenant}/{one.name}",
                one.revision,
                short_digest(one.digest),
                one.rank,
                enum_label(inference_pb2.Tier.Name(one.tier), "TIER_"),
                size(one.size_bytes),
                one.leases,
                "yes" if one.pinned else "",
                f"{one.idle_s:.1f} s",
            )
            for one in worker.status.adapters
        ),
    )


@command(app, "list")
def list_(session: Session) -> None:
    """List workers."""
    answer = session.call(STUB, "ListWorkers", pb.ListWorkersRequest())
    session.show(answer, lambda page: print_workers(page.workers))


@command(app)
def get(session: Session, worker_id: WorkerId) -> None:
    """Show one worker and every revision it holds."""
    session.show(session.call(STUB, "GetWorker", pb.GetWorkerRequest(worker_id=worker_id)), _print_held)


@command(app)
def cordon(
    session: Session,
    worker_id: WorkerId,
    undo: Annotated[bool, typer.Option("--undo", help="take the cordon back")] = False,
) -> None:
    """Send a worker no new requests. A drain cannot be taken back: a drained worker is started again."""
    request = pb.CordonWorkerRequest(worker_id=worker_id, uncordon=undo)
    session.show(session.call(STUB, "CordonWorker", request), lambda worker: print_workers([worker]))


@command(app)
def drain(session: Session, worker_id: WorkerId) -> None:
    """Let a worker finish what it has and hand its adapters over."""
    request = pb.DrainWorkerRequest(worker_id=worker_id)
    session.show(session.call(STUB, "DrainWorker", request), lambda worker: print_workers([worker]))
