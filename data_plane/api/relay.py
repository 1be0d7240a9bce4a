"""The worker's Relay service: all generations of one control plane over one stream."""

from collections.abc import AsyncIterator

from data_plane.api.carried import CarriedCalls
from data_plane.api.generations import Generations
from data_plane.api.grants import GrantVerifier, token_of
from data_plane.api.interceptors import Context
from protos.relay.v1 import relay_pb2 as relay
from protos.relay.v1 import relay_pb2_grpc


class RelayServicer(relay_pb2_grpc.RelayServicer):
    """Carry for control planes."""

    def __init__(self, generations: Generations, grants: GrantVerifier) -> None:
        self._generations = generations
        self._grants = grants
        self._streams: set[CarriedCalls] = set()
        self._leaving = False

    # A coroutine that writes: a task group inside a generator would span its yields.
    async def Carry(  # type: ignore[override]
        self, requests: AsyncIterator[relay.Upward], context: Context
    ) -> None:
        """Serve the calls of one stream."""
        self._grants.verify(token_of(context.invocation_metadata()))
        calls = CarriedCalls(self._generations)
        self._streams.add(calls)
        try:
            if self._leaving:
                calls.leave()
            await calls.run(requests, context.write)
        finally:
            self._streams.discard(calls)

    def leave(self) -> None:
        """Take no calls any more; a stream would else outlive them, and hold up the server's end."""
        self._leaving = True
        for calls in self._streams:
            calls.leave()
