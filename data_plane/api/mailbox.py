"""A request's events on their way from the engine thread to its stream.

The engine delivers once a step for all requests, with one wake-up of the event loop; each stream
takes what has gathered. Bounded by the request's own `max_tokens`: nothing else is ever put in.
"""

import asyncio
from collections.abc import Sequence

from data_plane.engine.events import Event


class Mailbox:
    """Events of one request. Lives on the event loop's thread."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._arrived = asyncio.Event()

    def put(self, events: Sequence[Event]) -> None:
        """Add events and wake the reader."""
        self._events.extend(events)
        self._arrived.set()

    async def take(self) -> list[Event]:
        """Wait for events and return all there are."""
        await self._arrived.wait()
        self._arrived.clear()
        events, self._events = self._events, []
        return events


Delivery = tuple[Mailbox, Sequence[Event]]


class Post:
    """Brings the deliveries of one step to the event loop in one call."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def __call__(self, deliveries: Sequence[Delivery]) -> None:
        """Called on the engine thread, once a step."""
        self._loop.call_soon_threadsafe(self._put_all, deliveries)

    @staticmethod
    def _put_all(deliveries: Sequence[Delivery]) -> None:
        for mailbox, events in deliveries:
            mailbox.put(events)
