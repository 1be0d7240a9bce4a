"""Interceptors: what happens around every call, unary or streaming, before and after its servicer.

Who calls (the key), whether they may (the roles), what the log says of it (the request id), and what
a failure looks like (the status). Servicers do none of it.
"""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from inspect import isawaitable
from typing import Any, Protocol

import grpc
import structlog
from grpc_status import rpc_status

from control_plane.access.keys import Keys
from control_plane.access.types import Identity
from control_plane.api.auditing import READS, Auditor
from control_plane.api.caller import Context, set_caller, set_request_id
from control_plane.api.malformed import checked, tolerant
from control_plane.api.roles import ROLES, is_open
from control_plane.api.status import status_of
from control_plane.errors import Disabled, Forbidden, QuotaExceeded, Unauthenticated

_BEARER = "Bearer "
_REGISTRY = "/loraplane.registry.v1.AdapterRegistry/"
ADAPTER_CHANGES = frozenset(method for method in ROLES if method.startswith(_REGISTRY)) - READS
_log = structlog.get_logger(__name__)

Details = grpc.HandlerCallDetails
Handler = Any  # grpc.RpcMethodHandler, a named tuple that its stubs do not know as one


class CallObserver(Protocol):
    """Who counts calls."""

    def finished(self, method: str, code: str, elapsed_s: float) -> None:
        """A call has ended with this status."""

    def refused(self, error: QuotaExceeded) -> None:
        """A limit refused a call."""


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Authenticates, authorises, audits, logs, counts and translates errors."""

    def __init__(
        self, keys: Keys, auditor: Auditor, observer: CallObserver, *, allow_adapter_changes: bool
    ) -> None:
        self._keys = keys
        self._allow_adapter_changes = allow_adapter_changes
        self._auditor = auditor
        self._observer = observer

    async def intercept_service(
        self, continuation: Callable[[Details], Awaitable[Handler | None]], handler_call_details: Details
    ) -> Handler | None:
        """Return the call's handler, wrapped; None (UNIMPLEMENTED) for an unknown method."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        metadata = dict(handler_call_details.invocation_metadata or ())
        handler = handler._replace(request_deserializer=tolerant(handler.request_deserializer))
        if handler.unary_unary is not None:
            return handler._replace(unary_unary=self._wrap(method, metadata, handler.unary_unary))
        if handler.unary_stream is not None:
            return handler._replace(unary_stream=self._wrap(method, metadata, handler.unary_stream))
        return handler._replace(stream_stream=self._wrap(method, metadata, handler.stream_stream))

    def _wrap(self, method: str, metadata: dict[str, Any], behaviour: Callable[..., Any]) -> Any:
        # A coroutine that writes, not a generator that yields, also for streams: task groups and
        # time-outs inside a generator would span its yields.
        async def wrapped(request: Any, context: Context) -> Any:
            request_id = uuid.uuid4().hex
            set_request_id(request_id)
            structlog.contextvars.bind_contextvars(request_id=request_id, method=method)
            began, code = time.monotonic(), grpc.StatusCode.CANCELLED
            event, admitted = None, False
            try:
                await self._admit(method, metadata)
                admitted = True
                event = await self._auditor.begin(method, request)
                answer = behaviour(checked(request), context)
                result = await (answer if isawaitable(answer) else _write_all(answer, context))
                code = grpc.StatusCode.OK
            except grpc.aio.AbortError:
                raise  # the health service says NOT_FOUND by itself
            except grpc.aio.InternalError as error:
                # gRPC takes no more of a call whose client has left: an end as by cancellation, and no bug.
                raise asyncio.CancelledError from error
            except Exception as error:
                status = rpc_status.to_status(status_of(error))
                code = status.code
                _log.debug("call failed", code=code.name, reason=status.details)
                if isinstance(error, QuotaExceeded):
                    self._observer.refused(error)
                if admitted:
                    await self._auditor.end(event, code)
                else:
                    await self._auditor.refuse(method, request, code)
                await context.abort_with_status(status)
            else:
                await self._auditor.end(event, code)
                return result
            finally:
                self._observer.finished(method, code.name, time.monotonic() - began)

        return wrapped

    async def _admit(self, method: str, metadata: dict[str, Any]) -> None:
        if is_open(method):
            return
        identity = await self._identify(metadata)
        set_caller(identity)
        if identity.role not in ROLES.get(method, ()):
            raise Forbidden(f"a key of role {identity.role.value!r} may not call {method}")
        if method in ADAPTER_CHANGES and not self._allow_adapter_changes:
            raise Disabled("changing adapters at run time", "allow_adapter_changes")
        structlog.contextvars.bind_contextvars(tenant=identity.tenant, key_id=identity.key_id)

    async def _identify(self, metadata: dict[str, Any]) -> Identity:
        authorization = metadata.get("authorization", "")
        if not authorization.startswith(_BEARER):
            raise Unauthenticated("the call carries no API key: send authorization: Bearer <key>")
        return await self._keys.authenticate(authorization.removeprefix(_BEARER))


async def _write_all(messages: Any, context: Context) -> None:
    async with aclosing(messages):
        async for message in messages:
            await context.write(message)
