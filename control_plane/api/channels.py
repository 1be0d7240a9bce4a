"""Channels: one line to each worker, kept while the worker lives.

Messages pass as bytes: the relay neither parses nor re-encodes what it does not need.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc

from control_plane.api.line import Line
from control_plane.api.tls import KEEPALIVE
from control_plane.workers.types import Worker

MAX_MESSAGE_BYTES = 64 << 20
OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # A worker that restarts at its address must not wait for a back-off that grew while it was away.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # One that accepts a connection but never answers is given up after this, not after 20 s.
    ("grpc.min_reconnect_backoff_ms", 2_000),
    *KEEPALIVE,  # the workers' servers allow a ping every 2.5 s
    ("grpc.http2.max_pings_without_data", 0),
)
Dial = Callable[[str, tuple[tuple[str, Any], ...]], grpc.aio.Channel]


class Channels:
    """The lines of this replica, by worker."""

    def __init__(self, dial: Dial) -> None:
        self._dial = dial
        self._lines: dict[str, Line] = {}
        self._left: list[Line] = []
        self._one_left = asyncio.Event()

    def to(self, worker: Worker) -> Line:
        """Return the line to a worker; a new one after its restart."""
        line = self._lines.get(worker.worker_id)
        if line is None or line.instance_id != worker.instance_id:
            if line is not None:
                self._left.append(line)
                self._one_left.set()
            channel = self._dial(worker.address, OPTIONS)
            line = self._lines[worker.worker_id] = Line(worker.worker_id, worker.instance_id, channel)
        return line

    async def run(self) -> None:
        """Close lines to workers that have restarted since, until cancelled."""
        while True:
            await self._one_left.wait()
            self._one_left.clear()
            while self._left:
                await self._left.pop().close()

    async def close(self) -> None:
        """End every call and connection."""
        for line in (*self._lines.values(), *self._left):
            await line.close()
        self._lines.clear()
        self._left.clear()
