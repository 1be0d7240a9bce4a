"""A failed call as one line: the status, what it is about, and what to do.

What it is about is read from the status' details (google.rpc), never from its text.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import grpc
import typer
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from rich.console import Console

_errors = Console(stderr=True, highlight=False, markup=False)
_ADVICE = {
    grpc.StatusCode.UNAVAILABLE: "is the control plane running? `loraplane up` starts one",
    grpc.StatusCode.UNAUTHENTICATED: "give a key with --key, LORAPLANE_KEY or the file that `up` writes",
    grpc.StatusCode.PERMISSION_DENIED: "use a key whose role and tenant allow it",
    grpc.StatusCode.ABORTED: "read the adapter again and decide",
    grpc.StatusCode.INVALID_ARGUMENT: "change what you gave: --help says what it may be",
    grpc.StatusCode.ALREADY_EXISTS: "choose another name, or delete what has it",
    grpc.StatusCode.FAILED_PRECONDITION: "nothing was changed; mend what it names, then call again",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "`loraplane quota usage TENANT` shows what is used",
    grpc.StatusCode.DEADLINE_EXCEEDED: "nothing is known of the outcome: look before you call again",
    grpc.StatusCode.UNIMPLEMENTED: "the server is older than this command",
    grpc.StatusCode.INTERNAL: "the server's log has more under the same id",
}
# Of what is not there, by its type in ResourceInfo.
_LISTS = {
    "adapter": "`loraplane adapter list` shows what there is",
    "revision": "`loraplane traffic show NAME` shows the kept revisions",
    "model": "`loraplane models` shows what your key may use",
    "canary": "`loraplane traffic show NAME` shows what is under way",
    "worker": "`loraplane worker list` shows what there is",
    "key": "`loraplane key list` shows what there is",
    "source": "check the path, and that the server may read it",
}
_LISTS_ANY = "check the name and the tenant"
_TAKEN = {"adapter": "`loraplane adapter publish NAME` gives it new weights, `adapter delete NAME` frees it"}
_STALE = {"change": "watch again without --from-version"}

_Detail = TypeVar("_Detail", bound=Message)


@contextmanager
def reported() -> Iterator[None]:
    """Turn a failed call inside the block into one line on stderr and exit code 1."""
    try:
        yield
    except grpc.RpcError as error:
        report(line_of(error))
        raise typer.Exit(1) from None
    except OSError as error:
        report(str(error))
        raise typer.Exit(1) from None


def report(line: str) -> None:
    """One line on stderr, whatever it says."""
    _errors.print("error: ", style="red", end="", soft_wrap=True)
    _errors.print(" ".join(line.split()), soft_wrap=True)


def line_of(error: grpc.RpcError) -> str:
    """Status, message and advice in one line."""
    code: grpc.StatusCode = error.code()
    return f"{code.name}: {error.details()} — {_advice(code, error)}"


def retry_after_s(error: grpc.RpcError) -> float | None:
    """The server's RetryInfo, in seconds."""
    info = _detail(error, error_details_pb2.RetryInfo)
    return None if info is None else _seconds(info.retry_delay)


def _fields(error: grpc.RpcError) -> list[str]:
    request = _detail(error, error_details_pb2.BadRequest)
    return [violation.field for violation in request.field_violations] if request else []


def _advice(code: grpc.StatusCode, error: grpc.RpcError) -> str:
    retry_s = retry_after_s(error)
    if retry_s is not None:
        return f"retry in {retry_s:.1f} s"
    resource = _detail(error, error_details_pb2.ResourceInfo)
    kind = resource.resource_type if resource else ""
    match code:
        case grpc.StatusCode.INVALID_ARGUMENT if fields := _fields(error):
            return f"change {', '.join(fields)}: --help says what it may be"
        case grpc.StatusCode.NOT_FOUND:
            return _LISTS.get(kind, _LISTS_ANY)
        case grpc.StatusCode.ALREADY_EXISTS if kind in _TAKEN:
            return _TAKEN[kind]
        case grpc.StatusCode.ABORTED if kind in _STALE:
            return _STALE[kind]
    return _ADVICE.get(code, "call again, or ask whoever runs the server")


def _detail(error: grpc.RpcError, kind: type[_Detail]) -> _Detail | None:
    status = rpc_status.from_call(error)
    for packed in status.details if status else ():
        found = kind()
        if packed.Unpack(found):
            return found
    return None


def _seconds(duration: Duration) -> float:
    return duration.ToNanoseconds() / 1e9
