"""Records: what the directory keeps of workers in Redis and says of their changes, as texts and as values.

Knows neither keys nor scripts. What a worker holds is kept adapter by adapter, so that a change of one is
written, told and read as one.
"""

import base64
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from google.protobuf.message import Message

from control_plane.workers import convert
from control_plane.workers.holdings import HeldAdapter, Holdings
from control_plane.workers.types import StatusChange, Worker
from protos.fleet.v1 import fleet_pb2
from protos.sync.v1 import sync_pb2

_NOTHING = Holdings()


@dataclass(frozen=True, slots=True)
class Sighting:
    """A worker's record and how long its lease still runs, in seconds."""

    worker: Worker
    lease_left_s: float
    version: int = 0  # of the record: the next change of it has the next


@dataclass(frozen=True, slots=True)
class Renewal:
    """A worker's lease was renewed for so many seconds; nothing else changed."""

    worker_id: str
    lease_left_s: float


@dataclass(frozen=True, slots=True)
class Changed:
    """What differs in a worker's record from the version before; its lease was renewed."""

    worker_id: str
    change: StatusChange
    version: int
    reported_s: float  # Unix time, on the store's clock
    lease_left_s: float


Change = Sighting | Changed | Renewal


def needed(entries: list[tuple[str, dict[str, str]]]) -> list[dict[str, str]]:
    """Return each worker's last record and renewal, and its changes since that record.

    A record is read as it is now, with every change before it.
    """
    last = {(entry["worker"], entry["what"]): number for number, (_, entry) in enumerate(entries)}
    return [
        entry
        for number, (_, entry) in enumerate(entries)
        if number == last[entry["worker"], entry["what"]]
        or (entry["what"] == "change" and number > last.get((entry["worker"], "record"), -1))
    ]


def entries_of(reply: Any) -> list[tuple[str, dict[str, str]]]:
    """Return the entries in a reply of XREAD on one stream."""
    if not reply:
        return []
    # A list of pairs under RESP2; a mapping, its entries nested once more, under RESP3.
    if isinstance(reply, dict):
        return [entry for batches in reply.values() for entries in batches for entry in entries]
    return list(reply[0][1])


def body(worker: Worker) -> str:
    """Who it is and what it does, without what it holds."""
    status = replace(worker.status, holdings=_NOTHING)
    return _text(convert.worker_to_proto(replace(worker, status=status), 0.0))


def worker_from(body: str, held: Sequence[str]) -> Worker:
    """The worker of a body and of what is stored of its adapters."""
    worker = convert.worker_from_proto(fleet_pb2.Worker.FromString(base64.b64decode(body)))
    # A record that an older release wrote has them in its body.
    holdings = Holdings(_held_from(text) for text in held) if held else worker.status.holdings
    return replace(worker, status=replace(worker.status, holdings=holdings))


def whole(worker: Worker) -> tuple[str | int, ...]:
    """What report.lua writes of a whole report."""
    return ("whole", body(worker), "", *_pairs(worker.status.adapters))


def changed(worker: Worker, change: StatusChange) -> tuple[str | int, ...]:
    """What report.lua writes of a change, after which the worker is as given."""
    told = _text(convert.change_to_proto(change))
    return ("change", body(worker), told, *_pairs(change.status.adapters), *change.gone)


def _pairs(adapters: Collection[HeldAdapter]) -> tuple[str | int, ...]:
    """How many, and for each its digest and what is stored of it."""
    pairs = [text for held in adapters for text in (held.digest, _text(convert.held_to_proto(held)))]
    return (len(adapters), *pairs)


def changed_from(entry: dict[str, str]) -> Changed:
    """The change of an entry of the stream."""
    told = sync_pb2.ObservedState.FromString(base64.b64decode(entry["change"]))
    return Changed(
        worker_id=entry["worker"],
        change=convert.change_from_proto(told, 0.0),
        version=int(entry["version"]),
        reported_s=int(entry["now_ms"]) / 1000,
        lease_left_s=int(entry["lease_ms"]) / 1000,
    )


def _held_from(text: str) -> HeldAdapter:
    return convert.held_from_proto(fleet_pb2.HeldAdapter.FromString(base64.b64decode(text)), 0.0)


def _text(message: Message) -> str:
    # Base64, because the client decodes every reply as text.
    return base64.b64encode(message.SerializeToString()).decode()
