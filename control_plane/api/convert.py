"""Protocol ↔ values of registry and quotas. The only place that knows both."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from control_plane.errors import InvalidArgument
from control_plane.quotas.types import Limits, Quota, Usage
from control_plane.registry.changes import ChangeKind
from control_plane.registry.types import (
    Adapter,
    AdapterKey,
    Canary,
    DecisionKind,
    NewAdapter,
    PinTier,
    ReloadPolicy,
    Revision,
    RevisionState,
    TrafficDecision,
    TrafficWeight,
)
from control_plane.registry.watching import Watched
from control_plane.workers.convert import timestamp
from control_plane.workers.convert_commands import PIN, POLICY
from control_plane.workers.types import HeldBytes, Report, Worker
from protos.inference.v1 import inference_pb2 as inference
from protos.quota.v1 import quota_pb2 as quota
from protos.registry.v1 import registry_pb2 as registry

_Value = TypeVar("_Value")
_POLICY_FROM = {proto: policy for policy, proto in POLICY.items()}
_STATE = {
    RevisionState.RESOLVING: registry.REVISION_STATE_RESOLVING,
    RevisionState.READY: registry.REVISION_STATE_READY,
    RevisionState.FAILED: registry.REVISION_STATE_FAILED,
}
_CHANGE = {
    ChangeKind.ADDED: registry.AdapterEvent.TYPE_ADDED,
    ChangeKind.MODIFIED: registry.AdapterEvent.TYPE_MODIFIED,
    ChangeKind.DELETED: registry.AdapterEvent.TYPE_DELETED,
}
_DECISION = {
    DecisionKind.TRAFFIC_SET: registry.TrafficDecision.KIND_TRAFFIC_SET,
    DecisionKind.CANARY_STARTED: registry.TrafficDecision.KIND_CANARY_STARTED,
    DecisionKind.CANARY_PROMOTED: registry.TrafficDecision.KIND_CANARY_PROMOTED,
    DecisionKind.CANARY_ENDED: registry.TrafficDecision.KIND_CANARY_ENDED,
    DecisionKind.CANARY_ROLLED_BACK: registry.TrafficDecision.KIND_CANARY_ROLLED_BACK,
}
_CANARY_LIMITS = ("max_error_increase", "max_first_token_ratio", "window_s", "min_requests")
_PIN_FROM = {proto: tier for tier, proto in PIN.items()}
MAX_VERSION_DIGITS = 18
_LIMITS = tuple(field.name for field in quota.Limits.DESCRIPTOR.fields)


def new_adapter(
    message: registry.RegisterAdapterRequest, *, tenant: str, base_model: str, confined: bool
) -> NewAdapter:
    """What a caller registers; `base_model` stands in where the caller names none."""
    return NewAdapter(
        key=AdapterKey(tenant, message.name),
        source=message.source,
        base_model=message.base_model or base_model,
        aliases=tuple(message.aliases),
        labels=dict(message.labels),
        shared_with=tuple(message.shared_with),
        expected_digest=message.expected_digest,
        confined=confined,
        reload_policy=policy(message.reload_policy) or ReloadPolicy.FINISH_RUNNING,
    )


def policy(value: registry.ReloadPolicy.ValueType) -> ReloadPolicy | None:
    """The reload policy that a caller names; None for none."""
    if value == registry.RELOAD_POLICY_UNSPECIFIED:
        return None
    return _known("reload_policy", value, _POLICY_FROM)


def pin_tier(value: registry.PinTier.ValueType) -> PinTier:
    """The tier that a caller pins to."""
    if value == registry.PIN_TIER_UNSPECIFIED:
        raise InvalidArgument("tier", value, "must be PIN_TIER_CPU or PIN_TIER_SLOT")
    return _known("tier", value, _PIN_FROM)


def _known(field: str, value: int, values: Mapping[Any, _Value]) -> _Value:
    try:
        return values[value]
    except KeyError:
        raise InvalidArgument(field, value, f"must be one of {sorted(values)}") from None


def traffic(message: registry.SetTrafficRequest) -> tuple[TrafficWeight, ...]:
    """Shares of traffic."""
    return tuple(TrafficWeight(share.revision, share.weight) for share in message.traffic)


def canary(message: registry.StartCanaryRequest) -> Canary:
    """A canary; limits that are absent have their defaults."""
    limits = {name: getattr(message, name) for name in _CANARY_LIMITS if message.HasField(name)}  # type: ignore[arg-type]
    return Canary(revision=message.revision, percent=message.percent, **limits)


def _canary_to_proto(value: Canary) -> registry.Canary:
    return registry.Canary(
        revision=value.revision,
        percent=value.percent,
        start_time=timestamp(value.start_s),
        **{name: getattr(value, name) for name in _CANARY_LIMITS},
    )


def _decision_to_proto(value: TrafficDecision) -> registry.TrafficDecision:
    return registry.TrafficDecision(
        time=timestamp(value.time_s), kind=_DECISION[value.kind], revision=value.revision, reason=value.reason
    )


def adapter_to_proto(adapter: Adapter, problems: Iterable[Report] = ()) -> registry.Adapter:
    """An adapter with what workers last refused about it."""
    return registry.Adapter(
        tenant=adapter.key.tenant,
        name=adapter.key.name,
        base_model=adapter.base_model,
        current_revision=adapter.current_revision,
        revisions=[_revision_to_proto(revision) for revision in adapter.revisions],
        aliases=adapter.aliases,
        labels=adapter.labels,
        shared_with=adapter.shared_with,
        traffic=[
            registry.TrafficWeight(revision=share.revision, weight=share.weight) for share in adapter.traffic
        ],
        canary=_canary_to_proto(adapter.canary) if adapter.canary else None,
        decisions=[_decision_to_proto(decision) for decision in adapter.decisions],
        pin=PIN[adapter.pin],
        generation=adapter.generation,
        resource_version=str(adapter.resource_version),
        create_time=timestamp(adapter.created_s),
        update_time=timestamp(adapter.updated_s),
        problems=[_report_to_proto(report) for report in problems],
        reload_policy=POLICY[adapter.reload_policy],
        delete_time=timestamp(adapter.deleted_s) if adapter.deleting else None,
    )


def _revision_to_proto(revision: Revision) -> registry.Revision:
    return registry.Revision(
        number=revision.number,
        digest=revision.digest,
        source=revision.source,
        rank=revision.rank,
        target_modules=revision.target_modules,
        size_bytes=revision.size_bytes,
        state=_STATE[revision.state],
        failure=revision.failure,
        create_time=timestamp(revision.created_s),
    )


def change_to_proto(watched: Watched) -> registry.AdapterEvent:
    """One change of an adapter, and from where a watch that has seen it goes on."""
    change = watched.change
    return registry.AdapterEvent(
        type=_CHANGE[change.kind],
        adapter=adapter_to_proto(change.adapter),
        resume_version="" if watched.resume_version is None else str(watched.resume_version),
    )


def reports_to_proto(reports: Iterable[Report]) -> registry.WorkerReports:
    """Each worker's answer."""
    return registry.WorkerReports(reports=[_report_to_proto(report) for report in reports])


def _report_to_proto(report: Report) -> registry.WorkerReport:
    return registry.WorkerReport(
        worker_id=report.worker_id,
        ok=report.outcome.ok,
        reason=report.outcome.reason,
        elapsed_s=report.outcome.elapsed_s,
        size_bytes=report.outcome.size_bytes,
    )


def resource_version(text: str) -> int | None:
    """The version to watch from; None for the present state first."""
    if not text:
        return None
    # Redis counts in 64 bits.
    if not text.isascii() or not text.isdigit() or len(text) > MAX_VERSION_DIGITS:
        raise InvalidArgument("resource_version", text, "must be one that the registry returned")
    return int(text)


def adapter_to_model(adapter: Adapter, *, tenant: str) -> inference.Model:
    """An adapter as a client of `tenant` names it: by its owner too when it is shared with it."""
    return inference.Model(
        id=adapter.known_as(tenant),
        parent=adapter.base_model,
        root=adapter.current.source,
        revision=adapter.current.number,
        digest=adapter.current.digest,
        created_unix_s=int(adapter.created_s),
    )


def base_to_model(worker: Worker) -> inference.Model:
    """The base model of a worker."""
    return inference.Model(id=worker.base_model, root=worker.base_model, digest=worker.base_model_digest)


def quota_from_proto(message: quota.Quota, *, tenant: str) -> Quota:
    """Limits that a caller sets."""
    limits = message.limits
    set_limits = {name: getattr(limits, name) for name in _LIMITS if limits.HasField(name)}  # type: ignore[arg-type]
    return Quota(tenant=tenant, adapter=message.adapter, limits=Limits(**set_limits))


def quota_to_proto(value: Quota) -> quota.Quota:
    """Limits as they are."""
    limits = {name: getattr(value.limits, name) for name in _LIMITS}
    return quota.Quota(tenant=value.tenant, adapter=value.adapter, limits=quota.Limits(**limits))


def usage_to_proto(value: Usage, *, held: HeldBytes) -> quota.Usage:
    """A tenant's usage, with the bytes that workers hold for it."""
    return quota.Usage(
        tenant=value.tenant,
        concurrent_requests=value.concurrent_requests,
        requests=value.requests,
        rejected_requests=value.rejected_requests,
        prompt_tokens=value.prompt_tokens,
        completion_tokens=value.completion_tokens,
        registered_adapters=value.registered_adapters,
        adapter_bytes=value.adapter_bytes,
        slot_bytes=held.slot_bytes,
        cpu_bytes=held.cpu_bytes,
        disk_bytes=held.disk_bytes,
        resident_slots=held.slots,
        cold_loads=value.cold_loads,
        remaining_cold_loads=value.remaining_cold_loads,
        remaining_requests=value.remaining_requests,
        remaining_tokens=value.remaining_tokens,
    )
