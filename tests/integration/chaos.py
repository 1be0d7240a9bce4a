"""Chaos: what is done to the processes of a stack, one seeded choice after another.

Owns the choice and the way back: what was killed is started again, what was stopped goes on. Invariant:
nothing is struck before every replica serves again with a worker, and no worker while another is away.
"""

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace

import grpc

from protos.fleet.v1 import fleet_pb2 as fleet
from tests.integration.pairs import leader_of
from tests.integration.stack import Client, Process, Stack

WHOLE_TIMEOUT_S = 90.0
POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Blow:
    """One thing that was done, and how long it took until all was as before."""

    what: str
    at_s: float
    serves_s: float  # every replica serves, with a worker
    whole_s: float = 0.0  # with every worker; 0: not yet


class Chaos:
    """Strikes one process at a time."""

    def __init__(
        self, stack: Stack, rng: random.Random, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stack = stack
        self._rng = rng
        self._clock = clock
        self.blows: list[Blow] = []
        self._wholeness: asyncio.Task[None] | None = None

    async def run(self, duration_s: float) -> None:
        """Strike until the time is over; each kind once, and once more before any comes a third time."""
        ends_s = self._clock() + duration_s
        for strike in self._shuffled():
            await strike()
        while self._clock() < ends_s:
            for strike in self._shuffled():
                if self._clock() < ends_s:
                    await strike()
        await self.whole()

    def _shuffled(self) -> list[Callable[[], Awaitable[None]]]:
        strikes = [
            self._kill_leader,
            self._kill_follower,
            self._kill_worker,
            self._kill_store,
            self._pause_replica,
            self._pause_worker,
        ]
        self._rng.shuffle(strikes)
        return strikes

    async def _kill_leader(self) -> None:
        await self._kill("leader", leader_of(self._stack))

    async def _kill_follower(self) -> None:
        leader = leader_of(self._stack)
        await self._kill("follower", next(one for one in self._stack.control_planes if one is not leader))

    async def _kill_worker(self) -> None:
        await self.whole()
        await self._kill("worker", self._rng.choice(self._stack.workers))

    async def _kill_store(self) -> None:
        at_s = self._clock()
        self._stack.valkey.kill()
        await asyncio.sleep(self._rng.uniform(0, 0.5))
        self._stack.valkey.start()  # on this thread: the server ends with the one that started it
        await self._noted("kill -9 store", at_s)

    async def _kill(self, what: str, process: Process) -> None:
        at_s = self._clock()
        await asyncio.to_thread(process.kill)
        await asyncio.sleep(self._rng.uniform(0, 1.5))
        process.start()
        await self._noted(f"kill -9 {what}", at_s)

    async def _pause_replica(self) -> None:
        await self._pause("replica", self._rng.choice(self._stack.control_planes))

    async def _pause_worker(self) -> None:
        await self.whole()
        await self._pause("worker", self._rng.choice(self._stack.workers))

    async def _pause(self, what: str, process: Process) -> None:
        at_s, pause_s = self._clock(), self._rng.uniform(0.3, 3.0)
        process.signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(pause_s)
        finally:
            process.signal(signal.SIGCONT)
        await self._noted(f"pause {what} {pause_s:.1f} s", at_s)

    async def _noted(self, what: str, at_s: float) -> None:
        await self._until(lambda ready: ready > 0)
        self.blows.append(Blow(what, at_s, self._clock() - at_s))
        if self._wholeness is None or self._wholeness.done():
            self._wholeness = asyncio.create_task(self._watch(len(self.blows) - 1))

    async def _watch(self, index: int) -> None:
        await self._until(lambda ready: ready == len(self._stack.workers))
        blow = self.blows[index]
        self.blows[index] = replace(blow, whole_s=self._clock() - blow.at_s)

    async def whole(self) -> None:
        """Wait until every replica sees every worker ready."""
        await self._until(lambda ready: ready == len(self._stack.workers))

    async def _until(self, enough: Callable[[int], bool]) -> None:
        async with asyncio.timeout(WHOLE_TIMEOUT_S):
            for index in range(len(self._stack.control_planes)):
                while not enough(await self._num_ready(index)):
                    await asyncio.sleep(POLL_S)

    async def _num_ready(self, index: int) -> int:
        async with self._stack.client(index) as client:
            with suppress(grpc.aio.AioRpcError):
                states = [worker.state for worker in await client.workers()]
                return states.count(fleet.WORKER_STATE_READY)
        return 0


@asynccontextmanager
async def any_client(stack: Stack) -> AsyncIterator[Client]:
    """The administrator's client of whichever replica is up."""
    target = "ipv4:" + ",".join(stack.endpoints)
    async with grpc.aio.insecure_channel(
        target, options=(("grpc.max_reconnect_backoff_ms", 500),)
    ) as channel:
        yield Client(channel, stack.admin_key)
