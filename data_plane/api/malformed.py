"""Malformed: bytes that are no message of the type their method takes.

gRPC answers them by itself, with UNKNOWN and the text of Python's exception, before anybody has asked
who calls. Here reading them never fails; whoever takes the request raises, as for any other bad one.
"""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from data_plane.errors import InvalidRequest

SHOWN_BYTES = 16


@dataclass(frozen=True, slots=True)
class Malformed:
    """Stands for a request that could not be read."""

    begins: bytes


def tolerant(parse: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """Return a deserializer that returns Malformed where `parse` raises; None (raw bytes) stays None."""
    if parse is None:
        return None

    def parsed(raw: bytes) -> Any:
        try:
            return parse(raw)
        except DecodeError:
            return Malformed(raw[:SHOWN_BYTES])

    return parsed


def checked(request: Any) -> Any:
    """Return the request, or a stream of requests that raises at the malformed one.

    Raises InvalidRequest.
    """
    if isinstance(request, Malformed):
        raise InvalidRequest("request", request.begins.hex(), "begins no message of the method's type")
    return _each_checked(request) if hasattr(request, "__aiter__") else request


async def _each_checked(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield checked(request)
