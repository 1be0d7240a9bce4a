"""Auditing: which calls leave an entry in the audit log, and what it says.

Every method that changes something does: an entry before it begins, without which it does not, and
the outcome when it has ended; and one that was refused to the key leaves its refusal. Calls without
a valid key leave nothing: anyone could fill the log with them. Values that are not names (sources,
limits, secrets) are left out.
"""

from collections.abc import Iterator
from typing import Any

import grpc
import structlog
from google.protobuf.message import Message

from control_plane.access.audit import BEGUN, AuditEvent, AuditLog
from control_plane.api.caller import caller, request_id
from control_plane.api.roles import is_open
from control_plane.errors import StoreUnavailable, Unauthenticated
from control_plane.texts import clipped

# Methods that change nothing. Any other is audited, so a new one cannot be forgotten.
READS = frozenset(
    f"/loraplane.{service}/{method}"
    for service, methods in {
        "inference.v1.Inference": ("Generate", "Route", "ListModels", "Tokenize"),
        "registry.v1.AdapterRegistry": ("GetAdapter", "ListAdapters", "WatchAdapters"),
        "access.v1.AccessKeys": ("ListKeys", "ListAuditEvents"),
        "quota.v1.TenantQuotas": ("GetQuota", "GetUsage", "ListQuotas"),
        "fleet.v1.Fleet": ("ListWorkers", "GetWorker", "WatchWorkers"),
        "sync.v1.WorkerSync": ("Sync",),
    }.items()
    for method in methods
)
MAX_TARGET_BYTES = 256
_NAMES = frozenset(
    {
        *("tenant", "name", "adapter", "key_id", "worker_id", "worker_ids", "revision", "role"),
        *("shared_with", "with_tenants"),
    }
)
_log = structlog.get_logger(__name__)


class Auditor:
    """Writes the entries of calls."""

    def __init__(self, log: AuditLog) -> None:
        self._log = log

    async def begin(self, method: str, request: Any) -> AuditEvent | None:
        """Write down a call that may begin; None when it is not audited. Raises StoreUnavailable."""
        if not _is_audited(method, request):
            return None
        return await self._log.append(_event(method, request, BEGUN))

    async def end(self, begun: AuditEvent | None, code: grpc.StatusCode) -> None:
        """Write down how it ended; while Redis is away its entry stays as it is."""
        if begun is None:
            return
        try:
            await self._log.end(begun, code.name)
        except StoreUnavailable as error:
            _log.error("outcome not audited", audited_event=begun, code=code.name, reason=str(error))

    async def refuse(self, method: str, request: Any, code: grpc.StatusCode) -> None:
        """Write down a call that was not even begun; while Redis is away it is only logged."""
        if not _is_audited(method, request):
            return
        try:
            event = _event(method, request, code.name)
        except Unauthenticated:
            return
        try:
            await self._log.append(event)
        except StoreUnavailable as error:
            _log.error("refusal not audited", audited_event=event, reason=str(error))


def _is_audited(method: str, request: Any) -> bool:
    return method not in READS and not is_open(method) and isinstance(request, Message)


def _event(method: str, request: Message, status: str) -> AuditEvent:
    identity = caller()
    return AuditEvent(
        key_id=identity.key_id,
        tenant=identity.tenant,
        method=method,
        targets=tuple(_targets(request)),
        status=status,
        request_id=request_id(),
    )


def _targets(request: Message) -> Iterator[str]:
    for field, value in request.ListFields():
        if isinstance(value, Message):
            yield from _targets(value)
        elif field.name in _NAMES:
            text = ",".join(value) if field.is_repeated else value
            # A caller may send megabytes under a name, and the log has a hundred thousand entries.
            yield clipped(f"{field.name}={text}", MAX_TARGET_BYTES)
