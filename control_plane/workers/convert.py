"""Protocol ↔ values of workers and what they hold. The only place that knows both.

On the wire from a worker an adapter has been idle for so long, here it was last used at a time; whoever
converts says what time it is (Unix time).
"""

from google.protobuf.timestamp_pb2 import Timestamp

from control_plane.registry.types import AdapterKey
from control_plane.workers.holdings import HeldAdapter, Holdings, Tier
from control_plane.workers.types import Capacity, StatusChange, Worker, WorkerState, WorkerStatus
from protos.fleet.v1 import fleet_pb2 as fleet
from protos.inference.v1 import inference_pb2 as inference
from protos.sync.v1 import sync_pb2 as sync

_TIER = {
    Tier.SLOT: inference.TIER_SLOT,
    Tier.CPU: inference.TIER_CPU,
    Tier.DISK: inference.TIER_DISK,
    Tier.SOURCE: inference.TIER_SOURCE,
}
_TIER_FROM = {proto: tier for tier, proto in _TIER.items()}
_STATE = {
    WorkerState.READY: fleet.WORKER_STATE_READY,
    WorkerState.CORDONED: fleet.WORKER_STATE_CORDONED,
    WorkerState.DRAINING: fleet.WORKER_STATE_DRAINING,
    WorkerState.LOST: fleet.WORKER_STATE_LOST,
}


def worker_from_hello(hello: sync.Hello) -> Worker:
    """A worker that just said hello and holds nothing that is known yet."""
    return Worker(
        worker_id=hello.worker_id,
        instance_id=hello.instance_id,
        address=hello.address,
        base_model=hello.base_model,
        base_model_digest=hello.base_model_digest,
        capacity=_capacity(hello.capacity),
    )


def worker_from_proto(message: fleet.Worker) -> Worker:
    """A worker as it was stored: who it is and what it does; the rest is the store's."""
    return Worker(
        worker_id=message.worker_id,
        instance_id=message.instance_id,
        address=message.address,
        base_model=message.base_model,
        base_model_digest=message.base_model_digest,
        capacity=_capacity(message.capacity),
        status=status_from_proto(message.status, 0.0),
    )


def worker_to_proto(worker: Worker, now_s: float) -> fleet.Worker:
    """A worker for the Fleet service, and without what it holds for the store."""
    return fleet.Worker(
        worker_id=worker.worker_id,
        instance_id=worker.instance_id,
        address=worker.address,
        state=_STATE[worker.state],
        base_model=worker.base_model,
        base_model_digest=worker.base_model_digest,
        capacity=fleet.Capacity(**{name: getattr(worker.capacity, name) for name in _CAPACITY_FIELDS}),
        status=status_to_proto(worker.status, now_s),
        last_report_time=timestamp(worker.last_report_s),
        lease_expire_time=timestamp(worker.lease_expires_s),
    )


_CAPACITY_FIELDS = tuple(field.name for field in fleet.Capacity.DESCRIPTOR.fields)
_STATUS_FIELDS = tuple(f.name for f in fleet.WorkerStatus.DESCRIPTOR.fields if f.name != "adapters")


def _capacity(message: fleet.Capacity) -> Capacity:
    return Capacity(**{name: getattr(message, name) for name in _CAPACITY_FIELDS})


def status_from_proto(message: fleet.WorkerStatus, now_s: float) -> WorkerStatus:
    """What a worker holds and does."""
    return WorkerStatus(
        holdings=Holdings(held_from_proto(held, now_s) for held in message.adapters),
        **{name: getattr(message, name) for name in _STATUS_FIELDS},
    )


def status_to_proto(status: WorkerStatus, now_s: float = 0.0) -> fleet.WorkerStatus:
    """What a worker holds and does."""
    return fleet.WorkerStatus(
        adapters=[held_to_proto(held, now_s) for held in status.adapters],
        **{name: getattr(status, name) for name in _STATUS_FIELDS},
    )


def change_from_proto(message: sync.ObservedState, now_s: float) -> StatusChange:
    """What differs from the report before; what is named as held and as gone is held."""
    status = status_from_proto(message.status, now_s)
    return StatusChange(status, tuple(one for one in message.gone_digests if one not in status.held))


def change_to_proto(change: StatusChange) -> sync.ObservedState:
    """The same for the store."""
    return sync.ObservedState(
        status=status_to_proto(change.status), changes_only=True, gone_digests=change.gone
    )


def held_from_proto(message: fleet.HeldAdapter, now_s: float) -> HeldAdapter:
    """A revision that a worker holds; without a time, as it was stored."""
    return HeldAdapter(
        key=AdapterKey(message.tenant, message.name),
        revision=message.revision,
        digest=message.digest,
        rank=message.rank,
        tier=_TIER_FROM.get(message.tier, Tier.SOURCE),
        size_bytes=message.size_bytes,
        leases=message.leases,
        pinned=message.pinned,
        used_s=_used_s(message, now_s),
        slot_bytes=message.slot_bytes,
        cpu_bytes=message.cpu_bytes,
        disk_bytes=message.disk_bytes,
    )


def _used_s(message: fleet.HeldAdapter, now_s: float) -> float:
    if not now_s:
        return message.last_use_time.ToMicroseconds() / 1e6
    # Whatever else a worker says (not a number, before 1970) is no time that could be stored.
    return now_s - (message.idle_s if 0 <= message.idle_s < now_s else 0.0)


def held_to_proto(held: HeldAdapter, now_s: float = 0.0) -> fleet.HeldAdapter:
    """A revision that a worker holds; for the store, where nothing is idle, without a time."""
    return fleet.HeldAdapter(
        tenant=held.key.tenant,
        name=held.key.name,
        revision=held.revision,
        digest=held.digest,
        rank=held.rank,
        tier=_TIER[held.tier],
        size_bytes=held.size_bytes,
        leases=held.leases,
        pinned=held.pinned,
        idle_s=max(0.0, now_s - held.used_s),
        last_use_time=timestamp(held.used_s),
        slot_bytes=held.slot_bytes,
        cpu_bytes=held.cpu_bytes,
        disk_bytes=held.disk_bytes,
    )


def timestamp(unix_s: float) -> Timestamp | None:
    """A time on the wire; never (0) is an absent field."""
    if not unix_s:
        return None
    message = Timestamp()
    message.FromNanoseconds(int(unix_s * 1e9))
    return message
