"""Auditing: which calls leave an entry in the audit log, and what it says.

Every method that changes something does, with the outcome, also when it was refused to the key.
Calls without a valid key do not: anyone could fill the log with them. Values that are not names
(sources, limits, secrets) are left out.
"""

from collections.abc import Iterator
from typing import Any

import grpc
import structlog
from google.protobuf.message import Message

from control_plane.access.audit import AuditEvent, AuditLog
from control_plane.api.caller import caller, request_id
from control_plane.errors import StoreUnavailable, Unauthenticated

# Methods that change nothing. Any other is audited, so a new one cannot be forgotten.
READS = frozenset(
    f"/loraplane.{service}/{method}"
    for service, methods in {
        "inference.v1.Inference": ("Generate", "ListModels", "Tokenize"),
        "registry.v1.AdapterRegistry": ("GetAdapter", "ListAdapters", "WatchAdapters"),
        "access.v1.AccessKeys": ("ListKeys", "ListAuditEvents"),
        "quota.v1.TenantQuotas": ("GetQuota", "GetUsage", "ListQuotas"),
        "fleet.v1.Fleet": ("ListWorkers", "GetWorker", "WatchWorkers"),
        "sync.v1.WorkerSync": ("Sync",),
    }.items()
    for method in methods
)
_NAMES = frozenset({"tenant", "name", "adapter", "key_id", "worker_id", "worker_ids", "revision", "role"})
_log = structlog.get_logger(__name__)


class Auditor:
    """Writes the entry of a call that has ended."""

    def __init__(self, log: AuditLog) -> None:
        self._log = log

    async def record(self, method: str, request: Any, code: grpc.StatusCode) -> None:
        """Write an entry when the method is audited; an outage of Redis loses it, with a log line."""
        if method in READS or not isinstance(request, Message):
            return
        try:
            identity = caller()
        except Unauthenticated:
            return
        event = AuditEvent(
            key_id=identity.key_id,
            tenant=identity.tenant,
            method=method,
            targets=tuple(_targets(request)),
            status=code.name,
            request_id=request_id(),
        )
        try:
            await self._log.append(event)
        except StoreUnavailable as error:
            _log.error("call not audited", audited_event=event, reason=str(error))


def _targets(request: Message) -> Iterator[str]:
    for field, value in request.ListFields():
        if isinstance(value, Message):
            yield from _targets(value)
        elif field.name in _NAMES:
            text = ",".join(value) if field.is_repeated else value
            yield f"{field.name}={text}"
