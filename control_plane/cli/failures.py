"""A failed call as one line: the status, what it is about, and what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import typer
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from rich.console import Console

_errors = Console(stderr=True, highlight=False)
_ADVICE = {
    grpc.StatusCode.UNAVAILABLE: "is the control plane running? `loraplane up` starts one",
    grpc.StatusCode.UNAUTHENTICATED: "give a key with --key, LORAPLANE_KEY or the file that `up` writes",
    grpc.StatusCode.PERMISSION_DENIED: "use a key whose role and tenant allow it",
    grpc.StatusCode.ABORTED: "read the adapter again and decide",
}


@contextmanager
def reported() -> Iterator[None]:
    """Turn a failed call inside the block into one line on stderr and exit code 1."""
    try:
        yield
    except grpc.RpcError as error:
        _errors.print(f"[red]error[/]: {line_of(error)}", soft_wrap=True)
        raise typer.Exit(1) from None
    except OSError as error:
        _errors.print(f"[red]error[/]: {error}", soft_wrap=True)
        raise typer.Exit(1) from None


def line_of(error: grpc.RpcError) -> str:
    """Status, message, fields and advice in one line."""
    code: grpc.StatusCode = error.code()
    parts = [f"{code.name}: {error.details()}"]
    retry_s = retry_after_s(error)
    if retry_s is not None:
        parts.append(f"retry in {retry_s:.1f} s")
    elif code in _ADVICE:
        parts.append(_ADVICE[code])
    return " — ".join(parts)


def retry_after_s(error: grpc.RpcError) -> float | None:
    """The server's RetryInfo, in seconds."""
    status = rpc_status.from_call(error)
    for packed in status.details if status else ():
        info = error_details_pb2.RetryInfo()
        if packed.Unpack(info):
            return _seconds(info.retry_delay)
    return None


def _seconds(duration: Duration) -> float:
    return duration.ToNanoseconds() / 1e9
