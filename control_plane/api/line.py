"""Line: what goes over the connection to one start of one worker, and which way.

Generations share a stream (`carrier`), unless one is too large or the worker is of a release that serves
none: those are calls of their own, as Tokenize is. Invariant: whichever way a generation went, leaving it
ends it at the worker, and its errors are the same.
"""

import asyncio
from typing import Any

import grpc
import structlog

from control_plane.api.carrier import Carrier, Deliver, Metadata, NotCarried, Outgoing
from control_plane.errors import NoWorker

SERVICE = "/loraplane.inference.v1.Inference"
# gRPC ends a stream, and all calls on it, for one message that the reader finds too large (4 MiB).
MAX_CARRIED_BYTES = 1 << 20
_log = structlog.get_logger(__name__)


class Line:
    """A connection to one start of one worker."""

    def __init__(self, worker_id: str, instance_id: str, channel: grpc.aio.Channel) -> None:
        self.instance_id = instance_id
        self._worker_id = worker_id
        self._channel = channel
        self._carrier = Carrier(channel)
        self._carries = True

    async def generate(self, outgoing: Outgoing, deliver: Deliver) -> None:
        """Deliver the messages of one generation, in order; raise AioRpcError, NoWorker or ClientBehind."""
        if self._carries and len(outgoing.raw) <= MAX_CARRIED_BYTES:
            try:
                await self._carrier.generate(outgoing, deliver)
            except NotCarried:
                self._carry_no_more()
            else:
                return
        await self._call(outgoing, deliver)

    async def tokenize(self, request: bytes, *, timeout_s: float | None, metadata: Metadata) -> bytes:
        """Tokenize a prompt."""
        method: Any = self._channel.unary_unary(f"{SERVICE}/Tokenize", None, None)
        answer: bytes = await method(request, timeout=timeout_s, metadata=metadata)
        return answer

    async def close(self) -> None:
        """End every call and the connection."""
        await self._carrier.close()
        await self._channel.close()

    def _carry_no_more(self) -> None:
        if self._carries:
            _log.warning("worker is of an older release: a call a generation", worker_id=self._worker_id)
        self._carries = False

    async def _call(self, outgoing: Outgoing, deliver: Deliver) -> None:
        method: Any = self._channel.unary_stream(f"{SERVICE}/Generate", None, None)
        call = method(outgoing.raw, timeout=outgoing.timeout_s, metadata=outgoing.metadata)
        try:
            async for message in call:
                await deliver(message)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Not this call's client but its line ended: the worker has restarted since.
            raise NoWorker("the worker restarted during the request") from None
        finally:
            # Leaving the loop does not cancel the call. A no-op when it has ended.
            call.cancel()
