"""Convergence: how soon a fleet is told what to do again after a kill -9, in seconds past every lease.

Two real replicas, two fake workers (the real protocol, no model), one Valkey that syncs every write. Each
time something is killed and an adapter registered with whoever is left; the clock stops when a worker gets
the command for it. What is killed is a process of its own: a replica, the worker at the leader, Valkey.
"""

import asyncio
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import uvloop
from redis.asyncio import Redis

from control_plane.store.client import connect
from control_plane.store.valkey import EmbeddedValkey
from control_plane.workers import keys as worker_keys
from protos.registry.v1 import registry_pb2, registry_pb2_grpc
from tests.control_plane.adapter_files import write_adapter
from tests.control_plane.fake_worker import FakeWorker
from tests.control_plane.fake_worker_process import WorkerProcess
from tests.control_plane.replica import eventually

LEASE_S = 1.0
PATIENCE_S = 30.0
FIRST_PORT = 18470  # two a scene: replicas that share one would split its clients


@asynccontextmanager
async def process(root: Path, redis_url: str, port: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """A control-plane process."""
    flags = ("--listen", f"127.0.0.1:{port}", "--redis-url", redis_url, "--state-dir", str(root))
    leases = ("--leader-lease-ttl-s", str(LEASE_S), "--worker-lease-ttl-s", str(LEASE_S))
    flags = (*flags, *leases, "--allow-adapter-changes", "true", "--adapter-roots", str(root))
    started = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "control_plane", *flags),
        stderr=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
    )
    try:
        yield started
    finally:
        if started.returncode is None:
            started.kill()
        await started.wait()


@dataclass
class Scene:
    """The replica that leads, the one that does not, and a worker at each."""

    root: Path
    redis: Redis
    leader: asyncio.subprocess.Process
    follower: asyncio.subprocess.Process
    channels: tuple[grpc.aio.Channel, grpc.aio.Channel]  # leader's, follower's
    endpoints: tuple[str, str]
    workers: list[FakeWorker | WorkerProcess]
    stack: AsyncExitStack
    names: list[str] = field(default_factory=list)

    async def register(self, at: int) -> None:
        """Register one more adapter with the leader (0) or the follower (1)."""
        self.names.append(f"bot-{len(self.names)}")
        source = write_adapter(self.root / self.names[-1], fill=len(self.names))
        request = registry_pb2.RegisterAdapterRequest(tenant="acme", name=self.names[-1], source=str(source))
        admin = (("authorization", f"Bearer {(self.root / 'admin.key').read_text().strip()}"),)
        stub = registry_pb2_grpc.AdapterRegistryStub(self.channels[at])
        await stub.RegisterAdapter(request, metadata=admin, wait_for_ready=True)

    async def told(self) -> None:
        """Wait until a worker is told of the last adapter."""
        await eventually(lambda: self.names[-1] in set().union(*map(_loads, self.workers)), PATIENCE_S)


def measure() -> dict[str, float]:
    """All figures."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        with EmbeddedValkey(root / "valkey") as valkey:
            return uvloop.run(convergence(valkey, root, FIRST_PORT))


Kill = Callable[[Scene], Awaitable[float]]  # kills something; returns when the last lease of it ends


async def convergence(valkey: EmbeddedValkey, root: Path, first_port: int) -> dict[str, float]:
    """All figures: seconds from the end of the lease (if there is one) to the next command."""
    figures = {}
    for number, (name, kill, at) in enumerate(
        (
            ("converge_s", _kill_leader, 1),
            ("converge_follower_s", _kill_follower, 0),
            ("converge_worker_s", _kill_worker, 0),
            ("converge_store_s", lambda scene: _kill_store(valkey), 0),
        )
    ):
        directory = root / name
        directory.mkdir()
        async with scene(valkey, directory, first_port + 2 * number) as made:
            since_s = await kill(made)
            if name == "converge_worker_s":
                await eventually(lambda: made.names[0] in _loads(made.workers[1]), PATIENCE_S)
            else:
                await made.register(at)
                await made.told()
            figures[name] = max(0.0, time.monotonic() - since_s)
            await made.redis.flushdb()
    return figures


@asynccontextmanager
async def scene(valkey: EmbeddedValkey, root: Path, port: int) -> AsyncIterator[Scene]:
    """Two replicas that have found their leader, and two workers of which the leader's holds an adapter."""
    redis = connect(valkey.url)
    async with AsyncExitStack() as stack:
        leader = await stack.enter_async_context(process(root, valkey.url, port))
        await eventually(lambda: redis.get(worker_keys.LEADER), PATIENCE_S)
        follower = await stack.enter_async_context(process(root, valkey.url, port + 1))
        endpoints = (f"127.0.0.1:{port}", f"127.0.0.1:{port + 1}")
        channels = []
        for endpoint in endpoints:
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(endpoint))
            await asyncio.wait_for(channel.channel_ready(), PATIENCE_S)
            channels.append(channel)
        key = (root / "worker.key").read_text().strip()
        workers = [WorkerProcess(endpoints[0], key, "worker-0"), FakeWorker(endpoints[1], key, "worker-1")]
        await stack.enter_async_context(workers[0].run())
        made = Scene(root, redis, leader, follower, tuple(channels), endpoints, workers, stack)
        await made.register(0)
        await made.told()
        await stack.enter_async_context(workers[1].run())
        await eventually(lambda: workers[1].leases, PATIENCE_S)
        try:
            yield made
        finally:
            await redis.aclose()


async def _kill_leader(scene: Scene) -> float:
    scene.leader.send_signal(signal.SIGKILL)
    return time.monotonic() + max(0, await scene.redis.pttl(worker_keys.LEADER)) / 1000


async def _kill_follower(scene: Scene) -> float:
    """Its worker dials the leader at once, as workers do, and the other one is away."""
    scene.follower.send_signal(signal.SIGKILL)
    killed_s = time.monotonic()
    await scene.workers[1].left.wait()
    again = FakeWorker(scene.endpoints[0], scene.workers[1].key, "worker-1")
    await scene.stack.enter_async_context(again.run())
    scene.workers[0].kill()
    scene.workers[:] = [again]
    return killed_s


async def _kill_worker(scene: Scene) -> float:
    """Its stream breaks, and its lease ends with it; nobody says goodbye."""
    killed_s = time.monotonic()
    scene.workers[0].kill()
    return killed_s


async def _kill_store(valkey: EmbeddedValkey) -> float:
    valkey.kill()
    valkey.start()
    return time.monotonic()


def _loads(worker: FakeWorker | WorkerProcess) -> set[str]:
    return {command.load.adapter.name for command in worker.commands if command.HasField("load")}
