"""Simulation: so many workers and adapters through a cold start, a dead worker and a dead leader.

Two real replicas on one Valkey: the first is a process of its own, leads, and is killed; the second
runs here, so that what its planning costs can be read. Adapters are written to the registry's store
as a registration would write them; everything else is done by the replicas.
"""

import asyncio
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from redis.asyncio import Redis

from control_plane.placement import rendezvous
from control_plane.registry.store import AdapterStore
from control_plane.registry.types import Adapter, AdapterKey
from control_plane.store.client import connect
from control_plane.store.valkey import EmbeddedValkey
from control_plane.workers import keys
from control_plane.workers.plan_costs import Cause, Cost
from tests.control_plane.fake_worker import BASE_MODEL
from tests.control_plane.placement.examples import revision
from tests.control_plane.replica import Replica, eventually, replica
from tests.simulation.worker import SimulatedWorker

NUM_HOLDERS = 2
NUM_CHANGES = 50


@dataclass
class Findings:
    """What a simulation came to."""

    workers: int
    adapters: int
    cold_s: float = 0.0
    cold_commands: int = 0
    cold_reports: int = 0
    worker_lost_s: float = 0.0
    worker_lost_commands: int = 0
    worker_lost_expected: int = 0
    leader_lost_s: float = 0.0  # from the end of its lease to the first command of its successor
    leader_lost_all_s: float = 0.0  # until every worker is with the successor and holds what it should
    leader_rss_bytes: int = 0
    costs: dict[str, Cost] = field(default_factory=dict)  # of the successor's planning, by cause

    def lines(self) -> list[str]:
        """The findings, to be printed."""
        cold = f"{self.cold_commands} commands, {self.cold_reports} reports"
        lost = f"{self.worker_lost_commands} commands for {self.worker_lost_expected} adapters"
        return [
            f"{self.workers} workers, {self.adapters} adapters, {NUM_HOLDERS} holders each",
            f"  from cold       {self.cold_s:6.2f} s, {cold}",
            f"  worker killed   {self.worker_lost_s:6.2f} s, {lost}",
            f"  leader killed   {self.leader_lost_s:6.2f} s after its lease to a command of the next, "
            f"{self.leader_lost_all_s:.2f} s until all workers are with it",
            f"  memory          {self.leader_rss_bytes / 2**20:.0f} MiB of the leader",
            *(f"  planning        {_cost(name, cost)}" for name, cost in self.costs.items()),
        ]


def _cost(name: str, cost: Cost) -> str:
    each = max(1, cost.changes)
    return (
        f"{name}: {cost.changes} changes, each {1000 * cost.seconds / each:.3f} ms, "
        f"{cost.pairs / each:.2f} pairs, {cost.scores / each:.1f} scores; "
        f"longest piece {1000 * cost.longest_s:.2f} ms"
    )


class Simulation:
    """One fleet and its control plane."""

    def __init__(self, redis: Redis, root: Path, findings: Findings) -> None:
        self.findings = findings
        self._redis = redis
        self._root = root
        self._store = AdapterStore(redis)
        self.keys: set[AdapterKey] = set()
        self.workers: list[SimulatedWorker] = []

    async def register(self, count: int) -> None:
        """Write so many adapters more."""
        for first in range(0, count, 32):
            names = [f"bot-{len(self.keys) + number}" for number in range(min(32, count - first))]
            stored = await asyncio.gather(*(self._store.commit(None, _adapter(name)) for name in names))
            self.keys |= {adapter.key for adapter in stored}

    async def start_workers(self, follower: Replica, leader_port: int, stack: AsyncExitStack) -> None:
        """Connect every worker, half of them with each replica first."""
        addresses = (f"127.0.0.1:{leader_port}", follower.plane.address)
        channels = [await stack.enter_async_context(grpc.aio.insecure_channel(one)) for one in addresses]
        for number in range(self.findings.workers):
            order = channels if number % 2 else channels[::-1]
            worker = SimulatedWorker(f"w{number:03}", follower.keys["worker"], order)
            self.workers.append(worker)
            await worker.begin()
            stack.push_async_callback(worker.disconnect)

    async def converge(self, timeout_s: float = 240.0) -> float:
        """Wait until every adapter is held by the workers that should; return the seconds."""
        began_s = time.monotonic()
        live = {worker.worker_id: worker for worker in self.workers}
        missing = [
            (live[worker_id], f"sha256:{key.name}-1")
            for key in self.keys
            for worker_id in rendezvous.best(str(key), live, NUM_HOLDERS)
        ]

        def held() -> bool:
            # As far as it goes: counting all of them again and again would disturb what is timed.
            while missing and missing[-1][1] in missing[-1][0].held:
                missing.pop()
            return not missing

        await eventually(held, timeout_s)
        return time.monotonic() - began_s

    async def cold_start(self) -> None:
        """From nothing held to everything held."""
        self.findings.cold_s = await self.converge()
        self.findings.cold_commands = self._num_commands()
        self.findings.cold_reports = sum(worker.num_reports for worker in self.workers)

    async def kill_worker(self) -> None:
        """End a worker's stream, as the death of its process does."""
        victim, before = self.workers.pop(), self._num_commands()
        self.findings.worker_lost_expected = len(victim.held)
        await victim.disconnect()
        self.findings.worker_lost_s = await self.converge()
        self.findings.worker_lost_commands = self._num_commands() - before

    async def kill_leader(self, process: asyncio.subprocess.Process, follower: Replica) -> None:
        """Kill -9, and a registration that nobody has planned yet."""
        self.findings.leader_rss_bytes = _rss_bytes(process.pid)
        process.send_signal(signal.SIGKILL)
        left_s = max(0, await self._redis.pttl(keys.LEADER)) / 1000
        killed_s, before = time.monotonic(), self._num_commands()
        await self.register(1)
        await eventually(lambda: self._num_commands() > before, 60)
        self.findings.leader_lost_s = max(0.0, time.monotonic() - killed_s - left_s)
        assert follower.plane.leadership.leads
        live = {worker.worker_id for worker in self.workers}
        await eventually(
            lambda: live <= {one.worker_id for one in follower.plane.fleet.workers() if one.live}, 60
        )
        await self.converge()
        self.findings.leader_lost_all_s = time.monotonic() - killed_s - left_s

    async def change(self, follower: Replica, count: int = NUM_CHANGES) -> Cost:
        """Register a few more; return what planning them cost the leader."""
        cost = follower.plane.desk.costs[Cause.ADAPTER]
        before = Cost(cost.changes, cost.pairs, cost.scores, cost.seconds)
        await self.register(count)
        await eventually(lambda: cost.changes >= before.changes + count, 60)
        await self.converge()
        return Cost(
            cost.changes - before.changes,
            cost.pairs - before.pairs,
            cost.scores - before.scores,
            cost.seconds - before.seconds,
        )

    def _num_commands(self) -> int:
        return sum(len(worker.commands) for worker in self.workers)


@asynccontextmanager
async def simulation(
    num_workers: int, num_adapters: int, *, lease_s: float = 3.0
) -> AsyncIterator[tuple[Simulation, Replica]]:
    """Run a fleet through its losses; what is left, with its leader, is there for the block."""
    async with AsyncExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        valkey = stack.enter_context(EmbeddedValkey(root / "valkey", fsync="no"))
        redis = connect(valkey.url)
        stack.push_async_callback(redis.aclose)
        run = Simulation(redis, root, Findings(num_workers, num_adapters))
        await run.register(num_adapters)
        leader, port = await stack.enter_async_context(_leader(root, valkey.url, lease_s))
        await eventually(lambda: redis.get(keys.LEADER), 30)
        settings = {"num_holders": NUM_HOLDERS, "worker_lease_ttl_s": lease_s, "leader_lease_ttl_s": lease_s}
        follower = await stack.enter_async_context(replica(connect(valkey.url), root, **settings))
        await run.start_workers(follower, port, stack)
        await run.cold_start()
        await run.kill_worker()
        await run.kill_leader(leader, follower)
        run.findings.costs = {cause.value: cost for cause, cost in follower.plane.desk.costs.items()}
        yield run, follower


@asynccontextmanager
async def _leader(
    root: Path, redis_url: str, lease_s: float
) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """A replica in a process of its own, on a free port."""
    port = _free_port()
    flags = {
        "listen": f"127.0.0.1:{port}",
        "redis-url": redis_url,
        "state-dir": str(root),
        "adapter-roots": str(root),
        "num-holders": str(NUM_HOLDERS),
        "leader-lease-ttl-s": str(lease_s),
        "worker-lease-ttl-s": str(lease_s),
    }
    arguments = [part for flag, value in flags.items() for part in (f"--{flag}", value)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "control_plane", *arguments),
        stderr=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        env=dict(os.environ),
    )
    try:
        yield process, port
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def _adapter(name: str) -> Adapter:
    return Adapter(
        key=AdapterKey("acme", name),
        base_model=BASE_MODEL,
        revisions=(revision(name),),
        current_revision=1,
        generation=0,
        resource_version=0,
    )


def _rss_bytes(pid: int) -> int:
    """Resident memory of a process; 0 where the system does not say."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        return 0
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024
