"""`loraplane top`, `traffic`, `audit`, `key rotate` and `certs` against a real replica."""

import asyncio
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from redis.asyncio import Redis
from rich.console import Console

from control_plane.cli.activity import ASKED, SHOWN, Activity, most_active
from control_plane.cli.command import Session
from control_plane.cli.connection import Connection
from control_plane.cli.top import MAX_ADAPTERS, _watch, view
from protos.access.v1 import access_pb2, access_pb2_grpc
from protos.fleet.v1 import fleet_pb2, fleet_pb2_grpc
from protos.inference.v1 import inference_pb2
from protos.quota.v1 import quota_pb2, quota_pb2_grpc
from protos.registry.v1 import registry_pb2 as pb
from tests.control_plane.adapter_files import write_adapter
from tests.control_plane.replica import Replica, eventually, ready, replica


def drawn(*workers: fleet_pb2.Worker, **usages: quota_pb2.Usage) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(view(workers, usages))
    return capture.get()


def holding(count: int) -> fleet_pb2.Worker:
    adapters = [
        fleet_pb2.HeldAdapter(
            tenant="acme",
            name=f"bot-{number}",
            revision=1,
            rank=8,
            leases=number,
            tier=inference_pb2.TIER_SLOT if number % 2 else inference_pb2.TIER_CPU,
        )
        for number in range(count)
    ]
    return fleet_pb2.Worker(
        worker_id="worker-7",
        state=fleet_pb2.WORKER_STATE_READY,
        capacity=fleet_pb2.Capacity(max_loras=4, cpu_bytes=1 << 20, max_num_seqs=16, num_blocks=100),
        status=fleet_pb2.WorkerStatus(adapters=adapters, running_requests=3, cpu_bytes_used=1 << 19),
    )


def test_shows_how_full_each_tier_is_and_who_uses_what():
    text = drawn(holding(3), acme=quota_pb2.Usage(tenant="acme", requests=12, resident_slots=1))
    assert "worker-7  ready  3/16" in text
    assert "1/4" in text
    assert "█████░░░░░ 512.0 KiB of 1.0 MiB" in text
    assert text.index("acme/bot-2@1") < text.index("acme/bot-1@1") < text.index("acme/bot-0@1")
    assert "worker-7 slot" in text


def test_only_the_most_used_adapters_are_shown():
    text = drawn(holding(MAX_ADAPTERS + 5))
    assert "… 5 more" in text
    assert "acme/bot-0@1" not in text


def test_an_empty_fleet_is_drawn():
    assert "worker" in drawn()


def test_tenants_are_ordered_by_what_runs_then_by_what_was_done_lately_then_ever():
    usages = {
        "idle": quota_pb2.Usage(),
        "old": quota_pb2.Usage(completion_tokens=1_000_000),
        "lately": quota_pb2.Usage(completion_tokens=10),
        "running": quota_pb2.Usage(concurrent_requests=1),
    }
    assert most_active(usages, {"lately": 5}) == ["running", "lately", "old", "idle"]


class Api(
    fleet_pb2_grpc.FleetServicer, quota_pb2_grpc.TenantQuotasServicer, access_pb2_grpc.AccessKeysServicer
):
    """So many tenants with keys, the last of them the most active; its watch of workers breaks."""

    def __init__(self, tenants: int) -> None:
        self.tenants = [f"tenant-{number:03}" for number in range(tenants)]
        self.asked: list[str] = []

    def ListKeys(self, request, context):
        return access_pb2.ListKeysResponse(keys=[access_pb2.Key(tenant=tenant) for tenant in self.tenants])

    def GetUsage(self, request, context):
        self.asked.append(request.tenant)
        return quota_pb2.Usage(tenant=request.tenant, requests=1, completion_tokens=int(request.tenant[-3:]))

    def WatchWorkers(self, request, context):
        yield fleet_pb2.WorkerEvent(worker=holding(1))
        context.abort(grpc.StatusCode.UNAVAILABLE, "the server goes away")


@contextmanager
def served(api: Api) -> Iterator[Session]:
    server = grpc.server(ThreadPoolExecutor(4))
    fleet_pb2_grpc.add_FleetServicer_to_server(api, server)
    quota_pb2_grpc.add_TenantQuotasServicer_to_server(api, server)
    access_pb2_grpc.add_AccessKeysServicer_to_server(api, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield Session(Connection(f"127.0.0.1:{port}", "lp_secret"), as_json=False)
    finally:
        server.stop(None).wait()


def test_of_more_tenants_than_are_asked_at_once_the_most_active_are_found():
    api = Api(tenants=250)
    with served(api) as session:
        activity = Activity(session)
        for looks in range(3):
            before = len(api.asked)
            shown = activity.look([])
            assert len(api.asked) - before <= ASKED, looks
        assert list(shown) == [f"tenant-{number}" for number in range(249, 249 - SHOWN, -1)]


def test_a_live_view_whose_stream_breaks_ends_with_the_error():
    with served(Api(tenants=2)) as session, pytest.raises(grpc.RpcError) as error:
        _watch(session, {}, 0.1)
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE
    assert error.value.details() == "the server goes away"


async def command(control: Replica, *arguments: str, who: str = "admin") -> str:
    """Run the command as a process of its own and return what it printed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "control_plane.cli",
        *arguments,
        "--endpoint",
        control.plane.address,
        "--key",
        control.keys[who],
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, error = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0, error.decode()
    return out.decode()


async def test_the_commands_show_a_real_replica(redis: Redis, tmp_path: Path) -> None:
    async with replica(redis, tmp_path) as control, control.worker().run() as worker:
        await ready(control, "worker-0")
        source = str(write_adapter(tmp_path / "acme" / "bot"))
        register = pb.RegisterAdapterRequest(name="bot", source=source)
        adapter = await control.registry.RegisterAdapter(register, metadata=control.as_("acme"))
        await eventually(lambda: adapter.revisions[0].digest in worker.held)
        await eventually(lambda: any(True for _ in control.plane.fleet.held("acme")))
        seen = await command(control, "top", "--once")
        assert "worker-0  ready" in seen
        assert "acme/bot@1" in seen
        # It has a key, so it may ask the base model, which holds nothing of anybody's.
        assert "globex" in seen
        other = str(write_adapter(tmp_path / "acme" / "bot-2", fill=2.0))
        more = ("--source", other, "--tenant", "acme", "--keep-current")
        await command(control, "adapter", "publish", "bot", *more)
        canary = await command(control, "traffic", "canary", "bot", "--percent", "10", "--tenant", "acme")
        assert "canary-started" in canary
        document: Any = json.loads(
            await command(control, "traffic", "promote", "bot", "--tenant", "acme", "--json")
        )
        assert document["current_revision"] == "2"
        audit = await command(control, "audit")
        assert audit.index("EndCanary") < audit.index("StartCanary") < audit.index("RegisterAdapter")
        assert "name=bot" in audit
