"""Outbox: what the calls of one stream have to say, until gRPC takes the next message.

A slow reader makes messages larger, not more: what has gathered when gRPC is ready goes as one. Bounded:
of a generation nothing is said beyond its `max_tokens`, and while more than MAX_WAITING_BYTES wait,
`room` holds up the calls that would add to it.
"""

import asyncio
from collections import deque

from protos.relay.v1 import relay_pb2 as relay

# Whoever reads takes 4 MiB by default, and gRPC ends a stream that brings a larger message.
MAX_MESSAGE_BYTES = 1 << 20
MAX_WAITING_BYTES = 16 << 20
FRAME_BYTES = 128  # of memory around what is in it


class Outbox:
    """Frames in their order. Lives on the event loop's thread."""

    def __init__(self) -> None:
        # What frames are made of: making each at once and copying it later takes twice as long.
        self._waiting: deque[tuple[int, str, bytes]] = deque()  # call, field of Frame, its value
        self._waiting_bytes = 0
        self._closed = False
        self._changed = asyncio.Event()
        self._roomy = asyncio.Event()
        self._roomy.set()

    def say(self, call_id: int, message: bytes) -> None:
        """Add a message of a call."""
        self._add(call_id, "message", message)

    def end(self, call_id: int, status: bytes) -> None:
        """Add the end of a call."""
        self._add(call_id, "end", status)

    def close(self) -> None:
        """Nothing more will be added."""
        self._closed = True
        self._changed.set()

    async def take(self) -> relay.Downward | None:
        """Wait for frames and return what has gathered, up to the bound of a message; None after the last."""
        while not self._waiting:
            if self._closed:
                return None
            self._changed.clear()
            await self._changed.wait()
        return self._gathered()

    async def room(self) -> None:
        """Wait until little enough waits to be sent."""
        await self._roomy.wait()

    def _add(self, call_id: int, field: str, value: bytes) -> None:
        self._waiting.append((call_id, field, value))
        self._waiting_bytes += len(value) + FRAME_BYTES
        if self._waiting_bytes > MAX_WAITING_BYTES:
            self._roomy.clear()
        self._changed.set()

    def _gathered(self) -> relay.Downward:
        message, taken_bytes = relay.Downward(), 0
        add = message.frames.add
        while self._waiting and taken_bytes < MAX_MESSAGE_BYTES:
            call_id, field, value = self._waiting.popleft()
            frame = add()
            frame.call_id = call_id
            setattr(frame, field, value)
            taken_bytes += len(value) + FRAME_BYTES
        self._waiting_bytes -= taken_bytes
        if self._waiting_bytes <= MAX_WAITING_BYTES:
            self._roomy.set()
        return message
