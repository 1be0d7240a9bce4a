"""Protocol ↔ commands to workers and their answers. The only place that knows both."""

from typing import assert_never

from control_plane.placement.commands import Action, Command, Drain, Evict, Load, Pin, Reload
from control_plane.registry.types import AdapterKey, PinTier, ReloadPolicy, Revision
from control_plane.workers.types import Outcome
from protos.registry.v1 import registry_pb2 as registry
from protos.sync.v1 import sync_pb2 as sync

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
