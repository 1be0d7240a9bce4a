"""Protocol ↔ values of workers and commands. The only place that knows both."""

from typing import assert_never

from google.protobuf.timestamp_pb2 import Timestamp

from control_plane.placement.commands import Action, Command, Drain, Evict, Load, Pin, Reload
from control_plane.registry.types import AdapterKey, PinTier, ReloadPolicy, Revision
from control_plane.workers.types import (
    Capacity,
    HeldAdapter,
    Outcome,
    Tier,
    Worker,
    WorkerState,
    WorkerStatus,
)
from protos.fleet.v1 import fleet_pb2 as fleet
from protos.inference.v1 import inference_pb2 as inference
from protos.registry.v1 import registry_pb2 as registry
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
POLICY = {
    ReloadPolicy.IMMEDIATE: registry.RELOAD_POLICY_IMMEDIATE,
    ReloadPolicy.FINISH_RUNNING: registry.RELOAD_POLICY_FINISH_RUNNING,
    ReloadPolicy.DRAIN: registry.RELOAD_POLICY_DRAIN,
}
PIN = {
    PinTier.NONE: registry.PIN_TIER_UNSPECIFIED,
    PinTier.CPU: registry.PIN_TIER_CPU,
    PinTier.SLOT: registry.PIN_TIER_SLOT,
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
    """A worker as it was stored: who it is and what it holds; state and lease are the store's."""
    return Worker(
        worker_id=message.worker_id,
        instance_id=message.instance_id,
        address=message.address,
        base_model=message.base_model,
        base_model_digest=message.base_model_digest,
        capacity=_capacity(message.capacity),
        status=status_from_proto(message.status),
    )


def worker_to_proto(worker: Worker) -> fleet.Worker:
    """A worker for the Fleet service and for the store."""
    return fleet.Worker(
        worker_id=worker.worker_id,
        instance_id=worker.instance_id,
        address=worker.address,
        state=_STATE[worker.state],
        base_model=worker.base_model,
        base_model_digest=worker.base_model_digest,
        capacity=fleet.Capacity(**{name: getattr(worker.capacity, name) for name in _CAPACITY_FIELDS}),
        status=status_to_proto(worker.status),
        last_report_time=timestamp(worker.last_report_s),
        lease_expire_time=timestamp(worker.lease_expires_s),
    )


_CAPACITY_FIELDS = tuple(field.name for field in fleet.Capacity.DESCRIPTOR.fields)
_STATUS_FIELDS = tuple(f.name for f in fleet.WorkerStatus.DESCRIPTOR.fields if f.name != "adapters")


def _capacity(message: fleet.Capacity) -> Capacity:
    return Capacity(**{name: getattr(message, name) for name in _CAPACITY_FIELDS})


def status_from_proto(message: fleet.WorkerStatus) -> WorkerStatus:
    """What a worker holds and does."""
    return WorkerStatus(
        adapters=tuple(_held_from_proto(held) for held in message.adapters),
        **{name: getattr(message, name) for name in _STATUS_FIELDS},
    )


def status_to_proto(status: WorkerStatus) -> fleet.WorkerStatus:
    """What a worker holds and does."""
    return fleet.WorkerStatus(
        adapters=[_held_to_proto(held) for held in status.adapters],
        **{name: getattr(status, name) for name in _STATUS_FIELDS},
    )


def _held_from_proto(message: fleet.HeldAdapter) -> HeldAdapter:
    return HeldAdapter(
        key=AdapterKey(message.tenant, message.name),
        revision=message.revision,
        digest=message.digest,
        rank=message.rank,
        tier=_TIER_FROM.get(message.tier, Tier.SOURCE),
        size_bytes=message.size_bytes,
        leases=message.leases,
        pinned=message.pinned,
        idle_s=message.idle_s,
        slot_bytes=message.slot_bytes,
        cpu_bytes=message.cpu_bytes,
        disk_bytes=message.disk_bytes,
    )


def _held_to_proto(held: HeldAdapter) -> fleet.HeldAdapter:
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
        idle_s=held.idle_s,
        slot_bytes=held.slot_bytes,
        cpu_bytes=held.cpu_bytes,
        disk_bytes=held.disk_bytes,
    )


def command_to_proto(command: Command, *, command_id: str, fencing_token: int) -> sync.Command:
    """A command as the worker gets it."""
    message = sync.Command(command_id=command_id, generation=command.generation, fencing_token=fencing_token)
    _set_action(message, command.action)
    return message


def _set_action(message: sync.Command, action: Action) -> None:
    match action:
        case Load(key, revision, into_slot):
            message.load.CopyFrom(sync.LoadCommand(adapter=_source(key, revision), into_slot=into_slot))
        case Evict(key, digest, cancel_running):
            evict = sync.EvictCommand(
                tenant=key.tenant, name=key.name, digest=digest, cancel_running=cancel_running
            )
            message.evict.CopyFrom(evict)
        case Reload(key, revision, policy, replaces_digest):
            reload = sync.ReloadCommand(
                adapter=_source(key, revision), policy=POLICY[policy], replaces_digest=replaces_digest
            )
            message.reload.CopyFrom(reload)
        case Pin(key, digest, tier):
            message.pin.CopyFrom(
                sync.PinCommand(tenant=key.tenant, name=key.name, digest=digest, tier=PIN[tier])
            )
        case Drain():
            message.drain.SetInParent()
        case _:
            assert_never(action)


def _source(key: AdapterKey, revision: Revision) -> sync.AdapterSource:
    return sync.AdapterSource(
        tenant=key.tenant,
        name=key.name,
        revision=revision.number,
        digest=revision.digest,
        source=revision.source,
        rank=revision.rank,
        size_bytes=revision.size_bytes,
    )


def outcome_from_ack(ack: sync.Ack) -> Outcome:
    """A command that was done."""
    return Outcome(ok=True, elapsed_s=ack.elapsed_s, size_bytes=ack.size_bytes)


def outcome_from_nack(nack: sync.Nack) -> Outcome:
    """A command that was refused."""
    return Outcome(ok=False, reason=nack.reason, terminal=nack.terminal)


def timestamp(unix_s: float) -> Timestamp | None:
    """A time on the wire; never (0) is an absent field."""
    if not unix_s:
        return None
    message = Timestamp()
    message.FromNanoseconds(int(unix_s * 1e9))
    return message
