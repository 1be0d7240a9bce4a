"""Every error of the tree as gRPC status with details."""

from typing import Any

import grpc
import pytest
from google.protobuf import symbol_database
from google.rpc import code_pb2, error_details_pb2, status_pb2

from control_plane import errors
from control_plane.api.status import CODES, status_of

EXAMPLES = [
    (errors.InvalidArgument("name", "A B", "must be lower case"), "INVALID_ARGUMENT", "BadRequest"),
    (errors.NotFound("adapter", "acme/bot"), "NOT_FOUND", "ResourceInfo"),
    (errors.NameTaken("adapter", "acme/bot", "exists"), "ALREADY_EXISTS", "ResourceInfo"),
    (errors.StaleRevision("adapter", "acme/bot", "is at 3"), "ABORTED", "ResourceInfo"),
    (errors.Disabled("it", "allow_it"), "FAILED_PRECONDITION", ""),
    (errors.Refused("rank 64 is above 16"), "FAILED_PRECONDITION", ""),
    (errors.Unauthenticated("no key"), "UNAUTHENTICATED", ""),
    (errors.Forbidden("not yours"), "PERMISSION_DENIED", ""),
    (errors.QuotaExceeded("acme", "requests_per_minute", 5, 2.5), "RESOURCE_EXHAUSTED", "QuotaFailure"),
    (errors.ClientBehind("too much waits"), "RESOURCE_EXHAUSTED", ""),
    (errors.SourceUnavailable("s3 is away", 3.0), "UNAVAILABLE", "RetryInfo"),
    (errors.NoWorker("none"), "UNAVAILABLE", "RetryInfo"),
    (errors.StoreUnavailable("redis is away"), "UNAVAILABLE", "RetryInfo"),
]


def unpacked(status: status_pb2.Status) -> dict[str, Any]:
    found = {}
    for packed in status.details:
        message = symbol_database.Default().GetSymbol(packed.TypeName())()
        packed.Unpack(message)
        found[type(message).__name__] = message
    return found


@pytest.mark.parametrize(("error", "code", "detail"), EXAMPLES, ids=lambda value: type(value).__name__)
def test_error_has_its_code_and_details(error: errors.ControlError, code: str, detail: str) -> None:
    status = status_of(error)
    found = unpacked(status)
    assert code_pb2.Code.Name(status.code) == code
    assert status.message == str(error)
    assert (found["ErrorInfo"].reason, found["ErrorInfo"].domain) == (type(error).__name__, "loraplane")
    assert detail == "" or detail in found


def test_every_concrete_error_has_a_code_and_an_example() -> None:
    abstract = {errors.ControlError, errors.ResourceError, errors.Transient}
    tree = {kind for kind in vars(errors).values() if isinstance(kind, type)} - abstract
    assert set(CODES) == tree == {type(error) for error, _, _ in EXAMPLES}


def test_invalid_argument_names_field_and_rule() -> None:
    found = unpacked(status_of(errors.InvalidArgument("name", "A B", "must be lower case")))
    (violation,) = found["BadRequest"].field_violations
    assert (violation.field, violation.description) == ("name", "must be lower case")


def test_quota_says_when_to_retry_unless_waiting_cannot_help() -> None:
    found = unpacked(status_of(errors.QuotaExceeded("acme", "requests_per_minute", 5, 2.5)))
    assert found["RetryInfo"].retry_delay.ToMilliseconds() == 2500
    assert "RetryInfo" not in unpacked(status_of(errors.QuotaExceeded("acme", "adapter_bytes", 5, None)))


def test_an_unforeseen_error_gives_an_id_and_no_internals() -> None:
    status = status_of(RuntimeError("password is hunter2"))
    info = unpacked(status)["ErrorInfo"]
    assert status.code == code_pb2.INTERNAL
    assert "hunter2" not in str(status)
    assert info.metadata["error_id"] in status.message


def test_an_error_out_of_a_task_group_is_that_error() -> None:
    status = status_of(ExceptionGroup("unhandled", [errors.NotFound("worker", "w")]))
    assert status.code == code_pb2.NOT_FOUND


def test_a_workers_status_is_passed_on_as_it_is() -> None:
    theirs = status_pb2.Status(code=code_pb2.NOT_FOUND, message="no such tensor")
    theirs.details.add().Pack(error_details_pb2.ErrorInfo(domain="loraplane.worker"))
    trailing = grpc.aio.Metadata(("grpc-status-details-bin", theirs.SerializeToString()))
    error = grpc.aio.AioRpcError(grpc.StatusCode.NOT_FOUND, grpc.aio.Metadata(), trailing, "no such tensor")
    assert status_of(error) == theirs
