"""`loraplane top`, `traffic`, `audit`, `key rotate` and `certs` against a real replica."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from rich.console import Console

from control_plane.cli.top import MAX_ADAPTERS, view
from protos.fleet.v1 import fleet_pb2
from protos.inference.v1 import inference_pb2
from protos.quota.v1 import quota_pb2
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
