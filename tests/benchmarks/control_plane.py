"""`python -m tests.benchmarks.control_plane`: the control plane's figures, as ratios, in about two minutes.

Each ratio is the median over rounds in which both sides take turns, on one Valkey: admission against
an empty RPC of the same server, the relay against a bare stream, the registry with 100,000 adapters
against 10. Convergence is of real processes: the leader is killed, an adapter registered with the
other, and the time is taken until a worker is told, from the end of the dead leader's lease.
"""

import asyncio
import signal
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from redis.asyncio import Redis

from control_plane.api.calls import wanted
from control_plane.placement.plan import plan
from control_plane.placement.route import route
from control_plane.registry.service import Registry
from control_plane.registry.store import AdapterStore
from control_plane.registry.types import Adapter, AdapterKey, PinTier
from control_plane.resolvers.chain import ResolverChain
from control_plane.store.client import connect
from control_plane.store.valkey import EmbeddedValkey
from control_plane.workers import keys as worker_keys
from protos.inference.v1 import inference_pb2, inference_pb2_grpc
from protos.registry.v1 import registry_pb2, registry_pb2_grpc
from tests.benchmarks.affinity import by_residency, least_loaded, loads_per_1000
from tests.benchmarks.goals import report
from tests.control_plane.adapter_files import write_adapter
from tests.control_plane.fake_worker import BASE_MODEL, FakeWorker, Script
from tests.control_plane.placement.examples import adapter, revision, worker
from tests.control_plane.replica import eventually, ready, replica

NUM_ROUNDS = 5
CALLERS, CALLS = 32, 40  # of each caller, a round
STREAMS, MESSAGES = 8, 400
NUM_MANY, NUM_FEW, TENANTS = 100_000, 10, 100
LEASE_S = 1.0
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
    """Authenticate, resolve, reserve, route, against an empty unary RPC of the same server."""
    async with replica(redis, root) as control, control.worker().run():
        await ready(control, "worker-0")
        source = str(write_adapter(root / "acme" / "bot"))
        await control.registry.RegisterAdapter(
            registry_pb2.RegisterAdapterRequest(name="bot", source=source), metadata=control.as_("acme")
        )
        plane, secret = control.plane, control.keys["acme-user"]
        health: Any = health_pb2_grpc.HealthStub(control.channel)

        async def admit(number: int) -> None:
            identity = await plane.keys.authenticate(secret)
            await plane.registry.resolve(identity.tenant, "bot", plane.fleet.base_models(), str(number))
            await plane.quotas.reserve(identity.tenant, uuid.uuid4().hex, 100, "bot")
            route(by_name, plane.fleet.workers())

        target = await plane.registry.resolve("acme", "bot", plane.fleet.base_models())
        by_name = wanted(target)
        empty = health_pb2.HealthCheckRequest(service="liveness")
        return await interleaved(lambda: rate(admit), lambda: rate(lambda _: health.Check(empty)))


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


@asynccontextmanager
async def process(root: Path, redis_url: str, port: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """A control-plane process."""
    flags = ("--listen", f"127.0.0.1:{port}", "--redis-url", redis_url, "--state-dir", str(root))
    leases = ("--leader-lease-ttl-s", str(LEASE_S), "--worker-lease-ttl-s", str(LEASE_S))
    started = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "control_plane", *flags, *leases, "--adapter-roots", str(root)),
        stderr=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
    )
    try:
        yield started
    finally:
        if started.returncode is None:
            started.kill()
        await started.wait()


async def converge_s(valkey: EmbeddedValkey, root: Path, ports: tuple[int, int]) -> float:
    """Seconds from the end of a killed leader's lease until its successor's command reaches a worker."""
    redis = connect(valkey.url)
    async with AsyncExitStack() as stack:
        leader = await stack.enter_async_context(process(root, valkey.url, ports[0]))
        await eventually(lambda: redis.get(worker_keys.LEADER), 30)
        await stack.enter_async_context(process(root, valkey.url, ports[1]))
        endpoint = f"127.0.0.1:{ports[1]}"
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(endpoint))
        await asyncio.wait_for(channel.channel_ready(), 30)
        held = FakeWorker(endpoint, (root / "worker.key").read_text().strip())
        await stack.enter_async_context(held.run())
        await eventually(lambda: held.leases, 10)
        leader.send_signal(signal.SIGKILL)
        left_s = max(0, await redis.pttl(worker_keys.LEADER)) / 1000
        killed_s = time.monotonic()
        message = registry_pb2.RegisterAdapterRequest(
            tenant="acme", name="bot", source=str(write_adapter(root / "bot"))
        )
        admin = (("authorization", f"Bearer {(root / 'admin.key').read_text().strip()}"),)
        await registry_pb2_grpc.AdapterRegistryStub(channel).RegisterAdapter(message, metadata=admin)
        await eventually(lambda: held.commands, 30)
        taken_s = time.monotonic() - killed_s - left_s
    await redis.aclose()
    return max(0.0, taken_s)


def simulate_planning() -> None:
    """Print what planning costs with 200 workers and 10,000 adapters."""
    fleet = [worker(f"w{number:03}") for number in range(SIMULATED_WORKERS)]
    adapters = {one.key: one for one in (adapter(f"bot-{number}") for number in range(SIMULATED_ADAPTERS))}
    times = []
    for _ in range(3):
        began_s = time.perf_counter()
        commands = plan(adapters, fleet, version=1, num_holders=2)
        times.append(time.perf_counter() - began_s)
    print(
        f"planning {SIMULATED_ADAPTERS} adapters on {SIMULATED_WORKERS} workers: first {times[0]:.2f} s, "
        f"then {min(times[1:]):.3f} s, {len(commands)} commands"
    )


async def measure(root: Path) -> dict[str, float]:
    """All figures."""
    figures = {"affinity_load_ratio": loads_per_1000(by_residency) / loads_per_1000(least_loaded)}
    simulate_planning()
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
            ("converge_s", lambda: converge_s(few, root / "c", (18470, 18471))),
        ):
            await redis.flushdb()
            await other.flushdb()
            figures[name] = await figure()
            print(f"{name} {figures[name]:.3f}", file=sys.stderr, flush=True)
        await redis.aclose()
        await other.aclose()
    return figures


def main() -> int:
    """Measure, print, keep; 1 when a goal is missed."""
    with tempfile.TemporaryDirectory() as directory:
        return report(asyncio.run(measure(Path(directory))))


if __name__ == "__main__":
    sys.exit(main())
