"""Traffic: clients of several tenants that never stop asking, and what each of them got.

Knows nothing of what is done to the processes meanwhile. Every request ends up in `outcomes`, with its
tokens or its status; what they mean is for the test to say.
"""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grpc

from tests.integration.stack import Answer, Client, collect, direct_call

# As channels between replicas and workers: a peer that fell silent ends its streams within 8 s.
KEEPALIVE = (
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.ping_timeout_ms", 3_000),
)
RECONNECT = (("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500))
CHANNEL_OPTIONS = (*KEEPALIVE, *RECONNECT)
TIMEOUT_S = 60.0
PAUSE_S = 0.05  # of a client that was refused


@dataclass(frozen=True, slots=True)
class Caller:
    """A tenant's key, and the adapters that it asks for."""

    tenant: str
    key: str
    adapters: Sequence[int]  # by number; the model's name is a<number>


@dataclass(slots=True)
class Outcome:
    """One request and what became of it."""

    caller: Caller
    number: int
    prompt: tuple[int, ...]
    direct: bool
    began_s: float
    answer: Answer
    code: grpc.StatusCode = grpc.StatusCode.OK
    details: str = ""
    ended_s: float = 0.0

    @property
    def started(self) -> bool:
        """Whether it was admitted and a worker took it."""
        return self.answer.started is not None


class Traffic:
    """So many clients of each caller, over all replicas."""

    def __init__(
        self,
        rng: random.Random,
        endpoints: Sequence[str],
        prompts: Sequence[tuple[int, ...]],
        *,
        max_tokens: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rng = rng
        self._endpoints = endpoints
        self._prompts = prompts
        self._max_tokens = max_tokens
        self._clock = clock
        self._stopping = asyncio.Event()
        self.outcomes: list[Outcome] = []

    def stop(self) -> None:
        """Let every client end its request and leave."""
        self._stopping.set()

    async def client(self, caller: Caller) -> None:
        """Ask, one request after another, each of any replica."""
        channels = [grpc.aio.insecure_channel(end, options=CHANNEL_OPTIONS) for end in self._endpoints]
        clients = [Client(channel, caller.key) for channel in channels]
        while not self._stopping.is_set():
            outcome = await self._ask(caller, self._rng.choice(clients))
            self.outcomes.append(outcome)
            if outcome.code is not grpc.StatusCode.OK:
                await asyncio.sleep(PAUSE_S)
        for channel in channels:
            await channel.close()

    async def _ask(self, caller: Caller, client: Client) -> Outcome:
        number, prompt = self._rng.choice(caller.adapters), self._rng.choice(self._prompts)
        direct, num_tokens = self._rng.random() < 0.3, self._rng.randrange(1, self._max_tokens + 1)
        outcome = Outcome(caller, number, prompt, direct, self._clock(), Answer())
        try:
            if direct:
                await self._ask_worker(client, outcome, num_tokens)
            else:
                call = client.stream(f"a{number}", list(prompt), TIMEOUT_S, max_tokens=num_tokens)
                await collect(call, outcome.answer)
        except grpc.aio.AioRpcError as error:
            outcome.code, outcome.details = error.code(), error.details() or ""
        outcome.ended_s = self._clock()
        return outcome

    async def _ask_worker(self, client: Client, outcome: Outcome, num_tokens: int) -> None:
        routed = await client.route(f"a{outcome.number}", list(outcome.prompt), num_tokens)
        async with grpc.aio.insecure_channel(routed.address, options=CHANNEL_OPTIONS) as channel:
            call = direct_call(channel, routed, list(outcome.prompt), max_tokens=num_tokens)
            await collect(call, outcome.answer)
