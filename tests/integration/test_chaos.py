"""Two replicas, two workers and a store are killed, stopped and restarted under traffic; nothing breaks.

What must hold at the end: every stream ended with tokens or a status; tokens are the oracle's of the
receipt's digest; what was acknowledged is there; no quota was over-admitted; the books balance.
"""

import asyncio
import random
import secrets
import time

import grpc
import pytest

from protos.access.v1 import access_pb2, access_pb2_grpc
from protos.quota.v1 import quota_pb2 as quota
from protos.registry.v1 import registry_pb2 as registry
from tests.data_plane.world import sha256sum_digest
from tests.integration.acknowledged import Acknowledged
from tests.integration.chaos import Chaos, any_client
from tests.integration.concurrency import Most
from tests.integration.pairs import two_of_each
from tests.integration.stack import Stack
from tests.integration.traffic import Caller, Outcome, Traffic

pytestmark = pytest.mark.processes
RESERVATION_TTL_S = 12.0  # well above a pause and the time between two renewals
REQUESTS_PER_MINUTE, CONCURRENT, TOKENS_PER_MINUTE, REGISTERED = 60, 2, 600, 3
LIMITS = {
    "t0": quota.Limits(requests_per_minute=REQUESTS_PER_MINUTE),
    "t1": quota.Limits(concurrent_requests=CONCURRENT),
    "t2": quota.Limits(),
    "t3": quota.Limits(tokens_per_minute=TOKENS_PER_MINUTE),
    "t8": quota.Limits(registered_adapters=REGISTERED),
}
OWNERS = {0: "t0", 1: "t0", 2: "t3", 3: "t1", 4: "t1", 5: "t2", 6: "t2", 7: "t2"}
CLIENTS = {"t0": 3, "t1": 4, "t2": 3, "t3": 2}
HELD_TO = {"t0": "requests_per_minute", "t1": "concurrent_requests", "t3": "tokens_per_minute"}
REFUSED = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED}


@pytest.mark.parametrize(
    "duration_s", [pytest.param(10.0, id="short"), pytest.param(600.0, id="long", marks=pytest.mark.slow)]
)
@pytest.mark.timeout(1200)
async def test_nothing_acknowledged_is_lost_and_no_answer_is_wrong(tiny, tmp_path, duration_s):
    seed = secrets.randbits(32)
    print(f"\nseed {seed}")
    rng = random.Random(seed)
    with two_of_each(tiny, tmp_path, reservation_ttl_s=RESERVATION_TTL_S) as stack:
        callers = [await make_tenant(stack, tenant) for tenant in CLIENTS]
        prompts = [tuple(rng.randrange(1, 250) for _ in range(size)) for size in (1, 7, 30)]
        traffic = Traffic(rng, stack.endpoints, prompts, max_tokens=24)
        chaos = Chaos(stack, rng)
        async with any_client(stack) as client, asyncio.TaskGroup() as tasks:
            operator = Acknowledged(client, rng, tiny, OWNERS)
            for number, tenant in OWNERS.items():
                assert await operator.register(tenant, f"a{number}", number)
            await set_limits(client)
            began_s = time.monotonic()
            for caller in callers:
                for _ in range(CLIENTS[caller.tenant]):
                    tasks.create_task(traffic.client(caller))
            tasks.create_task(operator.run())
            tasks.create_task(register_too_many(operator))
            most = Most("t1")
            watching = tasks.create_task(most.watch(stack))
            await chaos.run(duration_s)
            traffic.stop()
            operator.stop()
            watching.cancel()
        elapsed_s = time.monotonic() - began_s
        tell(chaos, traffic.outcomes, operator)
        await chaos.whole()
        check_ends(traffic.outcomes)
        check_tokens(traffic.outcomes, tiny)
        check_rates(traffic.outcomes, elapsed_s)
        assert 0 < most.concurrent <= CONCURRENT
        async with any_client(stack) as client:
            await check_acknowledged(client, operator)
            await check_books(client, traffic.outcomes)
        await check_last_words(stack, callers)
        for process in (*stack.control_planes, *stack.workers):
            process.check_alive()


async def make_tenant(stack: Stack, tenant: str) -> Caller:
    async with stack.client() as client, grpc.aio.insecure_channel(stack.endpoints[0]) as channel:
        key = await access_pb2_grpc.AccessKeysStub(channel).CreateKey(
            access_pb2.CreateKeyRequest(tenant=tenant, role=access_pb2.ROLE_INFERENCE),
            metadata=client.metadata,
        )
    return Caller(tenant, key.secret, [number for number, owner in OWNERS.items() if owner == tenant])


async def set_limits(client) -> None:
    for tenant, limits in LIMITS.items():
        request = quota.SetQuotaRequest(quota=quota.Quota(tenant=tenant, limits=limits))
        await client.quotas.SetQuota(request, metadata=client.metadata)


async def register_too_many(operator: Acknowledged) -> None:
    await asyncio.gather(*(operator.register("t8", f"x{number}", number) for number in range(2 * REGISTERED)))


def tell(chaos: Chaos, outcomes: list[Outcome], operator: Acknowledged) -> None:
    """Print what was done, how soon traffic went on, and what came of it all."""
    for blow in chaos.blows:
        after = [o.ended_s for o in outcomes if o.began_s > blow.at_s and o.code is grpc.StatusCode.OK]
        again = f"{min(after) - blow.at_s:.2f} s" if after else "never"
        whole = f", whole after {blow.whole_s:.1f} s" if blow.whole_s else ""
        print(f"  {blow.what:<22} traffic after {again:>7}, all replicas after {blow.serves_s:5.2f} s{whole}")
    counts: dict[tuple[str, str], int] = {}
    for outcome in outcomes:
        key = (outcome.caller.tenant, outcome.code.name)
        counts[key] = counts.get(key, 0) + 1
    print(f"  requests {counts}, changes without an answer {operator.num_lost}")


def check_ends(outcomes: list[Outcome]) -> None:
    for outcome in outcomes:
        if outcome.code is grpc.StatusCode.OK:
            assert outcome.answer.finished is not None, outcome
            continue
        # A worker that restarted knows nothing of the grants of before.
        also = {grpc.StatusCode.PERMISSION_DENIED} if outcome.direct else set()
        assert outcome.code in REFUSED | also, outcome
        assert outcome.details, outcome


def check_tokens(outcomes: list[Outcome], tiny) -> None:
    sources = {
        (number, sha256sum_digest(source)): source
        for number in OWNERS
        for source in (tiny.source(number, 1), tiny.source(number, 2))
    }
    for outcome in outcomes:
        if not outcome.started:
            assert not outcome.answer.token_ids, outcome
            continue
        source = sources[outcome.number, outcome.answer.started.digest]
        tokens = outcome.answer.token_ids
        assert tokens == tiny.oracle.greedy(list(outcome.prompt), source, 24)[: len(tokens)], outcome


def check_rates(outcomes: list[Outcome], elapsed_s: float) -> None:
    """No more than the limits was let through, and each limit had something to refuse."""
    started = {tenant: [o for o in outcomes if o.caller.tenant == tenant and o.started] for tenant in CLIENTS}
    minutes = 1 + elapsed_s / 60
    assert len(started["t0"]) <= REQUESTS_PER_MINUTE * minutes + 1
    tokens = sum(len(o.prompt) + len(o.answer.token_ids) for o in started["t3"])
    assert tokens <= TOKENS_PER_MINUTE * minutes + 1
    assert started["t2"], "some were served"
    for tenant, limit in HELD_TO.items():
        refused = [o for o in outcomes if o.caller.tenant == tenant and limit in o.details]
        assert {o.code for o in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}, tenant


async def check_acknowledged(client, operator: Acknowledged) -> None:
    found = {}
    for tenant in {tenant for tenant, _ in operator.adapters}:
        token = ""
        while True:
            page = await client.registry.ListAdapters(
                registry.ListAdaptersRequest(tenant=tenant, page_token=token), metadata=client.metadata
            )
            found |= {(one.tenant, one.name): current_digest(one) for one in page.adapters}
            token = page.next_page_token
            if not token:
                break
    for key, digests in operator.adapters.items():
        # One whose registration was never answered may not be there.
        assert found.get(key) in digests or (key not in found and key[0] in {"t8", "t9"} and len(digests) < 2)
    for key in found:
        assert found[key] in operator.adapters[key]
    for tenant, limits in operator.limits.items():
        answer = await client.quotas.GetQuota(quota.GetQuotaRequest(tenant=tenant), metadata=client.metadata)
        assert answer.limits.requests_per_minute in limits | {0}
    assert sum(tenant == "t8" for tenant, _ in found) <= REGISTERED


def current_digest(adapter: registry.Adapter) -> str:
    return next(one.digest for one in adapter.revisions if one.number == adapter.current_revision)


async def usage_of(client, tenant: str) -> quota.Usage:
    return await client.quotas.GetUsage(quota.GetUsageRequest(tenant=tenant), metadata=client.metadata)


async def check_books(client, outcomes: list[Outcome]) -> None:
    """What crashed requests had reserved has expired; workers hold nothing for anybody."""
    async with asyncio.timeout(RESERVATION_TTL_S + 10):
        for tenant in CLIENTS:
            while (await usage_of(client, tenant)).concurrent_requests:
                await asyncio.sleep(0.1)
    for tenant in CLIENTS:
        started = sum(outcome.caller.tenant == tenant and outcome.started for outcome in outcomes)
        assert (await usage_of(client, tenant)).requests >= started
    for worker in await client.workers():
        assert worker.status.free_blocks == worker.capacity.num_blocks
        assert not worker.status.running_requests
        assert not any(adapter.leases for adapter in worker.status.adapters)


async def check_last_words(stack: Stack, callers: list[Caller]) -> None:
    """After it all, requests of either way are counted to the token."""
    caller = next(caller for caller in callers if caller.tenant == "t2")
    async with any_client(stack) as client:
        before = await usage_of(client, "t2")
        traffic = Traffic(random.Random(1), stack.endpoints, [(5, 6)], max_tokens=8)
        clients = asyncio.create_task(traffic.client(caller))
        async with asyncio.timeout(60):
            while len(traffic.outcomes) < 20:
                await asyncio.sleep(0.02)
        traffic.stop()
        await clients
        async with asyncio.timeout(20):
            while (after := await usage_of(client, "t2")).concurrent_requests:
                await asyncio.sleep(0.05)
    assert {outcome.code for outcome in traffic.outcomes} == {grpc.StatusCode.OK}
    assert {outcome.direct for outcome in traffic.outcomes} == {True, False}
    assert after.requests - before.requests == len(traffic.outcomes)
    used = sum(len(outcome.answer.token_ids) for outcome in traffic.outcomes)
    assert after.completion_tokens - before.completion_tokens == used
