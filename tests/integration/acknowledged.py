"""Acknowledged: what an operator was told is done, to be compared with what there is at the end.

A change whose answer never came may have been made or not: both are allowed, until a later change of
the same thing is acknowledged.
"""

import asyncio
import random
from collections import defaultdict
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager

import grpc

from protos.quota.v1 import quota_pb2 as quota
from protos.registry.v1 import registry_pb2 as registry
from tests.data_plane.world import sha256sum_digest
from tests.integration.stack import Client

POLICIES = (registry.RELOAD_POLICY_FINISH_RUNNING, registry.RELOAD_POLICY_DRAIN)
UNANSWERED = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED}
TIMEOUT_S = 20.0  # longer than any pause: whoever is asked answers or is gone
MAX_PAUSE_S = 0.4


class Acknowledged:
    """One operator, who changes one thing after another."""

    def __init__(self, client: Client, rng: random.Random, tiny, owners: dict[int, str]) -> None:
        self._client = client
        self._rng = rng
        self._tiny = tiny
        self._owners = owners
        self._stopping = asyncio.Event()
        self._number = 0
        self.adapters: dict[tuple[str, str], set[str]] = defaultdict(set)  # digests that may be current
        self.limits: dict[str, set[int]] = defaultdict(set)  # requests a minute that may hold
        self.num_lost = 0  # answers

    def stop(self) -> None:
        """End after the present change."""
        self._stopping.set()

    async def run(self) -> None:
        """Register, publish, evict, set limits."""
        changes = (self._publish, self._publish, self._register, self._evict, self._set_limit)
        while not self._stopping.is_set():
            await self._rng.choice(changes)()
            await asyncio.sleep(self._rng.uniform(0, MAX_PAUSE_S))

    async def register(self, tenant: str, name: str, number: int) -> bool:
        """Register one adapter; False when its answer was lost or it was refused."""
        request = registry.RegisterAdapterRequest(
            tenant=tenant, name=name, source=str(self._tiny.source(number))
        )
        digest = sha256sum_digest(self._tiny.source(number))
        with self._changing(self.adapters[tenant, name], digest) as done:
            await done(self._call(self._client.registry.RegisterAdapter, request))
        return self.adapters[tenant, name] == {digest}

    async def _register(self) -> None:
        self._number += 1
        await self.register("t9", f"x{self._number}", self._number % 8)

    async def _publish(self) -> None:
        number, revision = self._rng.choice(list(self._owners)), self._rng.choice((1, 2))
        source = self._tiny.source(number, revision)
        request = registry.PublishRevisionRequest(
            tenant=self._owners[number],
            name=f"a{number}",
            source=str(source),
            reload_policy=self._rng.choice(POLICIES),
        )
        with self._changing(self.adapters[request.tenant, request.name], sha256sum_digest(source)) as done:
            await done(self._call(self._client.registry.PublishRevision, request))

    async def _evict(self) -> None:
        number = self._rng.choice(list(self._owners))
        request = registry.EvictAdapterRequest(tenant=self._owners[number], name=f"a{number}")
        with self._changing(set(), None) as done:
            await done(self._call(self._client.registry.EvictAdapter, request))

    async def _set_limit(self) -> None:
        tenant, limit = f"q{self._rng.randrange(5)}", self._rng.randrange(1, 1000)
        request = quota.SetQuotaRequest(
            quota=quota.Quota(tenant=tenant, limits=quota.Limits(requests_per_minute=limit))
        )
        with self._changing(self.limits[tenant], limit) as done:
            await done(self._call(self._client.quotas.SetQuota, request))

    async def _call(self, method, request) -> object:
        return await method(request, metadata=self._client.metadata, timeout=TIMEOUT_S)

    @contextmanager
    def _changing(self, values: set, value: object) -> Iterator:
        async def done(call: Awaitable[object]) -> None:
            await call
            values.clear()
            values.add(value)

        values.add(value)
        try:
            yield done
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                values.discard(value)
            elif error.code() in UNANSWERED:
                self.num_lost += 1
            else:
                raise
