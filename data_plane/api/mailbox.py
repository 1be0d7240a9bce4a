"""A request's events on their way from the engine thread to whoever sends them on.

The engine delivers once a step for all requests, with one wake-up of the event loop. A stream of its own
takes what has gathered from a mailbox, bounded by the request's own `max_tokens`: nothing else is ever
put in. Calls that share a stream take their events as they come (`carried`).
"""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from data_plane.engine.events import Event


class Sink(Protocol):
    """Where the events of one request go. Lives on the event loop's thread."""

    def put(self, events: Sequence[Event]) -> None:
        """Take events. Never raises: those of other requests come after them."""


class Mailbox:
    """Events of one request, until its reader takes them."""

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


Delivery = tuple[Sink, Sequence[Event]]


class Post:
    """Brings the deliveries of one step to the event loop in one call."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def __call__(self, deliveries: Sequence[Delivery]) -> None:
        """Called on the engine thread, once a step."""
        self._loop.call_soon_threadsafe(self._put_all, deliveries)

    @staticmethod
    def _put_all(deliveries: Sequence[Delivery]) -> None:
        for sink, events in deliveries:
            sink.put(events)
