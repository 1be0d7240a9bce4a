"""Sync protocol ↔ engine values."""

from collections.abc import Mapping
from typing import Any, TypeVar

from data_plane.adapters.revision import AdapterSource, ReloadPolicy, Revision, Tier
from data_plane.config import EngineConfig
from data_plane.direct import Word
from data_plane.engine.events import Command, Drain, EngineStatus, Evict, HeldAdapter, Load, Pin, Reload
from data_plane.errors import InvalidRequest
from protos.fleet.v1 import fleet_pb2 as fleet
from protos.inference.v1 import inference_pb2 as inference
from protos.registry.v1 import registry_pb2 as registry
from protos.sync.v1 import sync_pb2 as sync

_Value = TypeVar("_Value")
_TIER = {
    Tier.SLOT: inference.TIER_SLOT,
    Tier.CPU: inference.TIER_CPU,
    Tier.DISK: inference.TIER_DISK,
    Tier.SOURCE: inference.TIER_SOURCE,
}
_LOAD = (
    "running_requests",
    "waiting_requests",
    "free_blocks",
    "slot_bytes_used",
    "cpu_bytes_used",
    "disk_bytes_used",
    "computed_tokens",
    "cold_loads",
    "max_adapters_in_step",
    "steps",
)
_POLICY = {
    registry.RELOAD_POLICY_UNSPECIFIED: ReloadPolicy.FINISH_RUNNING,
    registry.RELOAD_POLICY_IMMEDIATE: ReloadPolicy.IMMEDIATE,
    registry.RELOAD_POLICY_FINISH_RUNNING: ReloadPolicy.FINISH_RUNNING,
    registry.RELOAD_POLICY_DRAIN: ReloadPolicy.DRAIN,
}
_PIN = {
    registry.PIN_TIER_UNSPECIFIED: None,
    registry.PIN_TIER_CPU: Tier.CPU,
    registry.PIN_TIER_SLOT: Tier.SLOT,
}


def command_from_proto(message: sync.Command) -> Command:
    """The engine's command; raise InvalidRequest for an action this worker does not know."""
    match message.WhichOneof("action"):
        case "load":
            return Load(_source(message.load.adapter), into_slot=message.load.into_slot)
        case "evict":
            evict = message.evict
            owner = (evict.tenant, evict.name)
            return Evict(evict.digest, cancel_running=evict.cancel_running, owner=owner)
        case "reload":
            return Reload(
                _source(message.reload.adapter),
                policy=_known("reload.policy", message.reload.policy, _POLICY),
            )
        case "pin":
            return Pin(message.pin.digest, tier=_known("pin.tier", message.pin.tier, _PIN))
        case "drain":
            return Drain()
        case action:
            raise InvalidRequest("command.action", action, "is not known to this worker")


def _known(field: str, value: int, values: Mapping[Any, _Value]) -> _Value:
    # Enums are open: a newer control plane may know more of them.
    try:
        return values[value]
    except KeyError:
        raise InvalidRequest(f"command.{field}", value, f"must be one of {sorted(values)}") from None


def adapter_name(message: sync.Command) -> tuple[str, str]:
    """Tenant and name of the adapter a command is about; empty for the whole worker."""
    match message.WhichOneof("action"):
        case "load" | "reload" as action:
            adapter = getattr(message, action).adapter
            return adapter.tenant, adapter.name
        case "evict" | "pin" as action:
            return getattr(message, action).tenant, getattr(message, action).name
        case _:
            return "", ""


def capacity_to_proto(
    config: EngineConfig, *, slot_bytes: int, num_blocks: int, block_size: int, max_model_len: int
) -> fleet.Capacity:
    """What the worker can hold."""
    return fleet.Capacity(
        max_loras=config.max_loras,
        max_lora_rank=config.max_lora_rank,
        max_cpu_loras=config.cpu_loras,
        slot_bytes=slot_bytes,
        cpu_bytes=config.cpu_cache_bytes,
        disk_bytes=config.disk_cache_bytes,
        num_blocks=num_blocks,
        block_size=block_size,
        max_num_seqs=config.max_num_seqs,
        max_model_len=max_model_len,
    )


def set_load(message: fleet.WorkerStatus, status: EngineStatus) -> None:
    """Everything of an observed state but the adapters, whose number may be large."""
    for field in _LOAD:
        setattr(message, field, getattr(status, field))


def held_to_proto(adapter: HeldAdapter, now_s: float) -> fleet.HeldAdapter:
    """One held revision; `now_s` on the engine's clock."""
    return fleet.HeldAdapter(
        tenant=adapter.revision.tenant,
        name=adapter.revision.name,
        revision=adapter.revision.number,
        digest=adapter.revision.digest,
        rank=adapter.rank,
        tier=_TIER[adapter.tier],
        size_bytes=adapter.slot_bytes + adapter.cpu_bytes + adapter.disk_bytes,
        slot_bytes=adapter.slot_bytes,
        cpu_bytes=adapter.cpu_bytes,
        disk_bytes=adapter.disk_bytes,
        leases=adapter.leases,
        pinned=adapter.pinned,
        idle_s=now_s - adapter.used_s,
    )


def direct_to_proto(word: Word) -> sync.DirectRequest:
    """What there is to tell of a direct request."""
    usage = word.usage
    if usage is None:
        return sync.DirectRequest(grant=word.grant)
    return sync.DirectRequest(
        grant=word.grant,
        usage=sync.DirectUsage(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cold=usage.cold,
            failed=usage.failed,
            first_token_s=usage.first_token_s,
        ),
    )


def _source(adapter: sync.AdapterSource) -> AdapterSource:
    revision = Revision(
        tenant=adapter.tenant, name=adapter.name, number=adapter.revision, digest=adapter.digest
    )
    return AdapterSource(revision=revision, uri=adapter.source)
