"""`python -m tests.benchmarks.control_plane`: the control plane's figures, as ratios, in about two minutes.

Each ratio is the median over rounds in which both sides take turns, on one Valkey: admission against
an empty RPC of the same server, the relay against a bare stream, the registry with 100,000 adapters
against 10. Convergence is of real processes: `convergence` says how.
"""

import asyncio
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from redis.asyncio import Redis

from control_plane.placement.desired import Desired
from control_plane.registry.service import Registry
from control_plane.registry.store import AdapterStore
from control_plane.registry.types import Adapter, AdapterKey, PinTier
from control_plane.resolvers.chain import ResolverChain
from control_plane.store.client import connect
from control_plane.store.valkey import EmbeddedValkey
from protos.inference.v1 import inference_pb2, inference_pb2_grpc
from protos.registry.v1 import registry_pb2
from tests.benchmarks.affinity import affinity_load_ratio
from tests.benchmarks.convergence import convergence
from tests.benchmarks.goals import report
from tests.control_plane.adapter_files import write_adapter
from tests.control_plane.fake_worker import BASE_MODEL, Script
from tests.control_plane.placement.examples import adapter, revision, worker
from tests.control_plane.replica import ready, replica
from tests.simulation.fleet import simulation

NUM_ROUNDS = 5
CALLERS, CALLS = 32, 40  # of each caller, a round
STREAMS, MESSAGES = 8, 400
NUM_MANY, NUM_FEW, TENANTS = 100_000, 10, 100
SIMULATED_WORKERS, SIMULATED_ADAPTERS = 200, 10_000

Rate = Callable[[], Awaitable[float]]


async def rate(call: Callable[[int], Awaitable[Any]], callers: int = CALLERS, calls: int = CALLS) -> float:
    """Calls a second of so many callers at once."""

    async def caller(number: int) -> None:
        for turn in range(calls):
            await call(number * calls + turn)

    began_s = time.perf_counter()
    await asyncio.gather(*(caller(number) for number in range(callers)))
    return callers * calls / (time.perf_counter() - began_s)


async def interleaved(one: Rate, other: Rate) -> float:
    """Median of the ratios of rounds, after an uncounted one."""
    ratios = [await one() / await other() for _ in range(NUM_ROUNDS + 1)][1:]
    return statistics.median(ratios)


async def admission_ratio(redis: Redis, root: Path) -> float:
    """Authenticate, resolve, reserve, route and sign: Route against an empty unary RPC of its server."""
    async with replica(redis, root) as control, control.worker().run():
        await ready(control, "worker-0")
        source = str(write_adapter(root / "acme" / "bot"))
        await control.registry.RegisterAdapter(
            registry_pb2.RegisterAdapterRequest(name="bot", source=source), metadata=control.as_("acme")
        )
        health: Any = health_pb2_grpc.HealthStub(control.channel)
        request = inference_pb2.RouteRequest(model="bot", prompt_tokens=100)
        caller = control.as_("acme-user")
        empty = health_pb2.HealthCheckRequest(service="liveness")
        return await interleaved(
            lambda: rate(lambda _: control.inference.Route(request, metadata=caller)),
            lambda: rate(lambda _: health.Check(empty)),
        )


async def relay_ratio(redis: Redis, root: Path) -> float:
    """Messages through the relay against the worker's own stream, all in one process."""
    script = Script(num_tokens=MESSAGES)
    request = inference_pb2.GenerateRequest(model=BASE_MODEL, text="hello")
    async with replica(redis, root) as control, control.worker(script=script).run() as served:
        await ready(control, "worker-0")
        await _drain(control.inference.Generate(request, metadata=control.as_("acme-user")))
        granted = tuple(served.metadata[-1].items())
        grant = tuple(pair for pair in granted if pair[0] == "loraplane-grant")
        async with grpc.aio.insecure_channel(served.address) as channel:
            direct: Any = inference_pb2_grpc.InferenceStub(channel)

            def relayed(_: int) -> Awaitable[None]:
                return _drain(control.inference.Generate(request, metadata=control.as_("acme-user")))

            def bare(_: int) -> Awaitable[None]:
                return _drain(direct.Generate(request, metadata=grant))

            return await interleaved(lambda: rate(relayed, STREAMS, 1), lambda: rate(bare, STREAMS, 1))


async def _drain(call: Any) -> None:
    async for _ in call:
        pass


async def registry_flat_ratio(many: Redis, few: Redis) -> float:
    """Look up, list a page, list a tenant's models and change, with 100,000 adapters against 10."""

    def operations(registry: Registry, tenants: int) -> Callable[[int], Awaitable[None]]:
        async def operate(number: int) -> None:
            key = AdapterKey("t0", f"bot-{number % NUM_FEW * tenants}")
            await registry.resolve(key.tenant, key.name, {"llama"})
            await registry.list(key.tenant, page_size=1)
            await registry.list(key.tenant, labels={"fleet": key.tenant}, page_size=1)
            async for _ in registry.visible(key.tenant, chunk=1):
                break
            await registry.pin(key, PinTier.CPU if number % 2 else PinTier.NONE)

        return operate

    operated = []
    for redis, count, tenants in ((many, NUM_MANY, TENANTS), (few, NUM_FEW, 1)):
        add = _adding(AdapterStore(redis), tenants)
        await rate(add, NUM_FEW, count // NUM_FEW)
        operated.append(operations(Registry(redis, ResolverChain([], time.monotonic)), tenants))
    large, small = operated
    return await interleaved(lambda: rate(large, 8, 40), lambda: rate(small, 8, 40))


def _adding(store: AdapterStore, tenants: int) -> Callable[[int], Awaitable[Adapter]]:
    return lambda number: store.commit(None, _stored(number, tenants))


def _stored(number: int, tenants: int) -> Adapter:
    tenant, name = f"t{number % tenants}", f"bot-{number}"
    return Adapter(
        key=AdapterKey(tenant, name),
        base_model="llama",
        revisions=(revision(name),),
        current_revision=1,
        generation=0,
        resource_version=0,
        labels={"fleet": tenant},
    )


async def simulate() -> None:
    """Print what a large fleet costs: planning, messages, memory, convergence."""
    lease_s = 10.0  # all of these workers share one process, which is late now and then
    async with simulation(SIMULATED_WORKERS, SIMULATED_ADAPTERS, lease_s=lease_s) as (run, leader):
        cost = await run.change(leader)
        each_us = 1e6 * cost.seconds / cost.changes
        print("\n".join(run.findings.lines()))
        print(f"  an adapter more: {cost.pairs / cost.changes:.2f} pairs, {each_us:.0f} µs")
    each_adapter, each_worker = planning_bytes(SIMULATED_WORKERS, SIMULATED_ADAPTERS)
    print(f"  planning memory: {each_adapter:.0f} bytes an adapter, {each_worker:.0f} bytes a worker")


def planning_bytes(num_workers: int, num_adapters: int) -> tuple[float, float]:
    """Bytes of desired state beside the registry's own values: of each adapter, and of an empty worker."""
    fleet = [worker(f"w{number:03}") for number in range(num_workers)]
    adapters = [adapter(f"bot-{number}", resource_version=number + 1) for number in range(num_adapters)]
    desired = Desired(2)
    tracemalloc.start()
    for one in fleet:
        for _ in desired.observe(one):
            continue
    workers_bytes = tracemalloc.get_traced_memory()[0]
    for other in adapters:
        desired.put(other)
    total_bytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return (total_bytes - workers_bytes) / num_adapters, workers_bytes / num_workers


async def measure(root: Path) -> dict[str, float]:
    """All figures."""
    figures = {"affinity_load_ratio": affinity_load_ratio()}
    await simulate()
    for directory in "abc":
        (root / directory).mkdir()
    with (
        EmbeddedValkey(root / "valkey", fsync="no") as valkey,
        EmbeddedValkey(root / "few", fsync="no") as few,
    ):
        redis, other = connect(valkey.url), connect(few.url)
        for name, figure in (
            ("admission_ratio", lambda: admission_ratio(redis, root / "a")),
            ("relay_ratio", lambda: relay_ratio(redis, root / "b")),
            ("registry_flat_ratio", lambda: registry_flat_ratio(redis, other)),
        ):
            await redis.flushdb()
            await other.flushdb()
            figures[name] = await figure()
            print(f"{name} {figures[name]:.3f}", file=sys.stderr, flush=True)
        await redis.aclose()
        await other.aclose()
        figures |= await convergence(few, root / "c", 18470)
    return figures


def main() -> int:
    """Measure, print, keep; 1 when a goal is missed."""
    with tempfile.TemporaryDirectory() as directory:
        # The loop that the process runs on.
        return report(uvloop.run(measure(Path(directory))))


if __name__ == "__main__":
    sys.exit(main())
