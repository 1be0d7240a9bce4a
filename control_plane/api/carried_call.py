"""CarriedCall: one generation's messages, between the stream that all share and its own client.

Knows no stream. Invariants: messages come out in their order, then the end; a client that does not read
holds up nobody, because nothing waits for it here, and at most MAX_WAITING_BYTES wait for it.
"""

import asyncio

from control_plane.errors import ClientBehind

# Of one client: 250,000 tokens, or 8,000 with twenty log-probabilities each.
MAX_WAITING_BYTES = 8 << 20


class CarriedCall:
    """Messages gather until they are taken."""

    def __init__(self) -> None:
        self._messages: list[bytes] = []
        self._num_bytes = 0
        self._ended = False
        self._error: Exception | None = None
        self._changed = asyncio.Event()

    def put(self, message: bytes) -> None:
        """Add a message; what comes after the end is dropped."""
        if self._ended:
            return
        self._messages.append(message)
        self._num_bytes += len(message)
        self._changed.set()
        if self._num_bytes > MAX_WAITING_BYTES:
            self._messages.clear()
            self.end(
                ClientBehind(f"more than {MAX_WAITING_BYTES >> 20} MiB wait for the client to read them")
            )

    def end(self, error: Exception | None = None) -> None:
        """End it, well or with an error; the first end counts."""
        if not self._ended:
            self._ended, self._error = True, error
            self._changed.set()

    async def take(self) -> list[bytes]:
        """Wait for messages and return all there are; none: it has ended well. Raises its error."""
        while not self._messages:
            if self._error is not None:
                raise self._error
            if self._ended:
                return []
            self._changed.clear()
            await self._changed.wait()
        messages, self._messages, self._num_bytes = self._messages, [], 0
        return messages
