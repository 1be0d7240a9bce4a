"""Calls: make the call of a case and say how it ended."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from tests.fuzz.cases import Case
from tests.fuzz.credentials import Metadata

_DETAILS = "grpc-status-details-bin"
# What this client makes of its own write to a stream that the server has ended; the status is lost.
_LATE_WRITE = "Internal error from Core"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one call ended, as its client saw it."""

    code: grpc.StatusCode
    text: str = ""  # of the error, and of its details
    reason: str = ""  # of the ErrorInfo; empty: there is none
    left: bool = False  # the client had seen enough and left


async def call(channel: grpc.aio.Channel, case: Case, metadata: Metadata) -> Outcome:
    """Make the call to its end, or until it has been quiet for the client's patience."""
    shape = f"{'stream' if case.rpc.descriptor.client_streaming else 'unary'}_stream"
    # The wire knows no unary answers: one reader for all shapes.
    stub = getattr(channel, shape)(case.rpc.method, None, None)
    request: Any = _frames(case) if case.rpc.descriptor.client_streaming else case.frames[0]
    running = stub(request, metadata=metadata, timeout=case.timeout_s)
    try:
        left = await _read(running, case)
    except grpc.aio.AioRpcError as error:
        if case.rpc.descriptor.client_streaming and error.details() == _LATE_WRITE:
            return Outcome(grpc.StatusCode.CANCELLED, left=True)
        return _failed(error)
    except DecodeError:
        return Outcome(grpc.StatusCode.DATA_LOSS, "the answer is no message of its type")
    return Outcome(grpc.StatusCode.OK, left=left)


async def _frames(case: Case) -> AsyncIterator[bytes]:
    for frame in case.frames:
        yield frame


async def _read(running: Any, case: Case) -> bool:
    endless = case.rpc.descriptor.server_streaming
    try:
        while True:
            async with asyncio.timeout(case.patience_s if endless else None):
                message = await running.read()
            if message is grpc.aio.EOF:
                return False
            case.rpc.response.FromString(message)
    except TimeoutError:
        running.cancel()
        return True


def _failed(error: grpc.aio.AioRpcError) -> Outcome:
    text, reason = error.details() or "", ""
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS and isinstance(value, bytes):
            status = status_pb2.Status.FromString(value)
            text = f"{text}\n{status}"
            reason = _reason(status)
    return Outcome(error.code(), text, reason)


def _reason(status: status_pb2.Status) -> str:
    for packed in status.details:
        info = error_details_pb2.ErrorInfo()
        if packed.Is(info.DESCRIPTOR):
            packed.Unpack(info)
            return str(info.reason)
    return ""
