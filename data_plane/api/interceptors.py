"""The one place where a worker's errors become gRPC status.

WorkerError and InvalidRequest go to the caller with details; anything unforeseen becomes INTERNAL
with an id that is also in the log, and no internals.
"""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from inspect import isawaitable
from typing import Any, TypeAlias

import grpc
import structlog
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from data_plane import errors
from data_plane.api.malformed import checked, tolerant
from data_plane.texts import clipped

_CODES: dict[type[errors.WorkerError], int] = {
    errors.InvalidRequest: code_pb2.INVALID_ARGUMENT,
    errors.AdapterRefused: code_pb2.FAILED_PRECONDITION,
    errors.AdapterUnreadable: code_pb2.UNAVAILABLE,
    errors.AdapterUnknown: code_pb2.NOT_FOUND,
    errors.GrantRefused: code_pb2.PERMISSION_DENIED,
    errors.StaleCommand: code_pb2.FAILED_PRECONDITION,
    errors.Overloaded: code_pb2.RESOURCE_EXHAUSTED,
    errors.Draining: code_pb2.UNAVAILABLE,
    errors.RequestCancelled: code_pb2.CANCELLED,
    errors.DeadlineExceeded: code_pb2.DEADLINE_EXCEEDED,
}
_RETRY_S: dict[type[errors.WorkerError], float] = {errors.AdapterUnreadable: 1.0, errors.Draining: 1.0}
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler = Any  # grpc.RpcMethodHandler, a named tuple that its stubs do not know as one

_log = structlog.get_logger(__name__)


def status_of(error: Exception) -> status_pb2.Status:
    """The status of an error, with google.rpc details."""
    error = _only(error)
    if isinstance(error, NotImplementedError):  # a method that gRPC's own services leave out
        return _unserved()
    if not isinstance(error, errors.WorkerError):
        return _unforeseen(error)
    code = next((_CODES[kind] for kind in type(error).__mro__ if kind in _CODES), code_pb2.INTERNAL)
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=type(error).__name__, domain="loraplane.worker")
    ]
    if isinstance(error, errors.InvalidRequest):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=clipped(f"{error.value!r} {error.rule}")
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    retry_s = error.retry_after_s if isinstance(error, errors.Overloaded) else _RETRY_S.get(type(error))
    if retry_s is not None:
        delay = Duration()
        delay.FromNanoseconds(int(retry_s * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return status_pb2.Status(
        code=code, message=clipped(str(error)), details=[_packed(one) for one in details]
    )


def _only(error: Exception) -> Exception:
    # A TaskGroup wraps the one error that ended it.
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _unserved() -> status_pb2.Status:
    info = error_details_pb2.ErrorInfo(reason="Unimplemented", domain="loraplane.worker")
    return status_pb2.Status(
        code=code_pb2.UNIMPLEMENTED, message="the method is not served", details=[_packed(info)]
    )


def _unforeseen(error: Exception) -> status_pb2.Status:
    error_id = uuid.uuid4().hex[:12]
    _log.error("unforeseen error", error_id=error_id, exc_info=error)
    info = error_details_pb2.ErrorInfo(
        reason="INTERNAL", domain="loraplane.worker", metadata={"error_id": error_id}
    )
    return status_pb2.Status(
        code=code_pb2.INTERNAL, message=f"internal error {error_id}", details=[_packed(info)]
    )


def _packed(message: Message) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)
    return packed


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every handler, unary or streaming, so that it ends with a status of `status_of`."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Return the handler with its errors translated; None (UNIMPLEMENTED) for an unknown method."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        handler = handler._replace(request_deserializer=tolerant(handler.request_deserializer))
        for kind in ("unary_unary", "unary_stream"):
            behaviour = getattr(handler, kind)
            if behaviour is not None:
                return handler._replace(**{kind: _guarded(behaviour)})
        return handler._replace(stream_stream=_guarded(handler.stream_stream))


def _guarded(behaviour: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    # A coroutine that writes, not a generator that yields, also for streams: it ends with the call,
    # while a generator that is left behind ends when it is collected.
    async def guarded(request: Any, context: Context) -> Any:
        try:
            answer = behaviour(checked(request), context)
            return await (answer if isawaitable(answer) else _write_all(answer, context))
        except grpc.aio.AbortError:
            raise  # the health service says NOT_FOUND by itself
        except grpc.aio.InternalError as error:
            # gRPC takes no more of a call whose client has left: an end as by cancellation, and no bug.
            raise asyncio.CancelledError from error
        except Exception as error:
            return await context.abort_with_status(rpc_status.to_status(status_of(error)))

    return guarded


async def _write_all(messages: Any, context: Context) -> None:
    async with aclosing(messages):
        async for message in messages:
            await context.write(message)
