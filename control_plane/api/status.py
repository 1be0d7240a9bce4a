"""Status: the tree of errors as gRPC status, by table.

The only place that knows both. What is not in the table is unforeseen: INTERNAL with an id that
is also in the log, and nothing else.
"""

import uuid
from collections.abc import Iterable

import grpc
import structlog
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from control_plane import errors
from control_plane.texts import clipped

DOMAIN = "loraplane"
DETAILS_METADATA = "grpc-status-details-bin"
_log = structlog.get_logger(__name__)

_BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}
CODES: dict[type[errors.ControlError], int] = {
    errors.InvalidArgument: code_pb2.INVALID_ARGUMENT,
    errors.NotFound: code_pb2.NOT_FOUND,
    errors.NameTaken: code_pb2.ALREADY_EXISTS,
    errors.StaleRevision: code_pb2.ABORTED,
    errors.Disabled: code_pb2.FAILED_PRECONDITION,
    errors.Refused: code_pb2.FAILED_PRECONDITION,
    errors.Draining: code_pb2.FAILED_PRECONDITION,
    errors.Unauthenticated: code_pb2.UNAUTHENTICATED,
    errors.Forbidden: code_pb2.PERMISSION_DENIED,
    errors.QuotaExceeded: code_pb2.RESOURCE_EXHAUSTED,
    errors.ClientBehind: code_pb2.RESOURCE_EXHAUSTED,
    errors.SourceUnavailable: code_pb2.UNAVAILABLE,
    errors.NoWorker: code_pb2.UNAVAILABLE,
    errors.StoreUnavailable: code_pb2.UNAVAILABLE,
}


def status_of(error: BaseException) -> status_pb2.Status:
    """Return the status of any error, with google.rpc details."""
    error = _only(error)
    if isinstance(error, grpc.aio.AioRpcError):
        return _passed_on(error)
    if isinstance(error, NotImplementedError):  # a method that gRPC's own services leave out
        return _status(code_pb2.UNIMPLEMENTED, "the method is not served", [_info("Unimplemented")])
    if not isinstance(error, errors.ControlError) or type(error) not in CODES:
        return _unforeseen(error)
    details = [_info(type(error).__name__), *_details(error)]
    return _status(CODES[type(error)], str(error), details)


def _only(error: BaseException) -> BaseException:
    # A TaskGroup wraps the one error that ended it.
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _details(error: errors.ControlError) -> Iterable[Message]:
    match error:
        case errors.InvalidArgument():
            violation = error_details_pb2.BadRequest.FieldViolation(
                field=error.field, description=clipped(error.rule)
            )
            yield error_details_pb2.BadRequest(field_violations=[violation])
        case errors.ResourceError():
            yield error_details_pb2.ResourceInfo(
                resource_type=error.kind,
                resource_name=clipped(error.name),
                description=clipped(str(error)),
            )
        case errors.QuotaExceeded():
            quota = error_details_pb2.QuotaFailure.Violation(
                subject=f"tenant:{error.tenant}", description=f"{error.limit} = {error.maximum}"
            )
            yield error_details_pb2.QuotaFailure(violations=[quota])
            if error.retry_after_s is not None:
                yield _retry(error.retry_after_s)
        case errors.Transient():
            yield _retry(error.retry_after_s)


def error_of(raw: bytes) -> grpc.aio.AioRpcError:
    """Return a serialized google.rpc.Status as the error of the call that it would have ended."""
    status = status_pb2.Status.FromString(raw)
    trailing = grpc.aio.Metadata((DETAILS_METADATA, raw))
    return grpc.aio.AioRpcError(
        _BY_NUMBER.get(status.code, grpc.StatusCode.UNKNOWN), grpc.aio.Metadata(), trailing, status.message
    )


def _passed_on(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    """A worker's status, as it is: its own interceptor made it fit for clients."""
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_METADATA and isinstance(value, bytes):
            return status_pb2.Status.FromString(value)
    return _status(error.code().value[0], error.details() or "", [_info(error.code().name)])


def _unforeseen(error: BaseException) -> status_pb2.Status:
    error_id = uuid.uuid4().hex[:12]
    _log.error("unforeseen error", error_id=error_id, exc_info=error)
    return _status(
        code_pb2.INTERNAL, f"internal error {error_id}", [_info("Internal", {"error_id": error_id})]
    )


def _status(code: int, message: str, details: Iterable[Message]) -> status_pb2.Status:
    packed = []
    for detail in details:
        packed.append(AnyMessage())
        packed[-1].Pack(detail)
    return status_pb2.Status(code=code, message=clipped(message), details=packed)


def _info(reason: str, metadata: dict[str, str] | None = None) -> error_details_pb2.ErrorInfo:
    return error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata or {})


def _retry(after_s: float) -> error_details_pb2.RetryInfo:
    delay = Duration()
    delay.FromNanoseconds(round(after_s * 1e9))
    return error_details_pb2.RetryInfo(retry_delay=delay)
