"""Adapters and workers to plan with."""

from typing import Any

from control_plane.registry.types import Adapter, AdapterKey, Revision
from control_plane.workers.holdings import HeldAdapter, Holdings, Tier
from control_plane.workers.types import Capacity, Worker, WorkerStatus

BASE = "llama"
MB = 1 << 20


def revision(name: str, number: int = 1, *, rank: int = 8, size_bytes: int = MB) -> Revision:
    return Revision(
        number=number,
        digest=f"sha256:{name}-{number}",
        source=f"file:///adapters/{name}/{number}",
        rank=rank,
        target_modules=("q_proj",),
        size_bytes=size_bytes,
    )


def adapter(name: str, *, current: int = 1, rank: int = 8, size_bytes: int = MB, **more: Any) -> Adapter:
    numbers = range(1, current + 1)
    fields: dict[str, Any] = {
        "key": AdapterKey("acme", name),
        "base_model": BASE,
        "revisions": tuple(revision(name, number, rank=rank, size_bytes=size_bytes) for number in numbers),
        "current_revision": current,
        "generation": current,
        "resource_version": current,
    }
    return Adapter(**(fields | more))


def held(
    name: str, number: int = 1, *, tier: Tier = Tier.CPU, idle_s: float = 0.0, **more: Any
) -> HeldAdapter:
    """A revision that somebody holds, at Unix time 1000."""
    return HeldAdapter(
        key=AdapterKey("acme", name),
        revision=number,
        digest=f"sha256:{name}-{number}",
        rank=8,
        tier=tier,
        cpu_bytes=MB,
        used_s=1000 - idle_s,
        **more,
    )


def worker(worker_id: str = "w", *holds: HeldAdapter, status: Any = None, **more: Any) -> Worker:
    capacity = more.pop("capacity", {})
    fields: dict[str, Any] = {
        "worker_id": worker_id,
        "instance_id": f"{worker_id}-1",
        "address": "127.0.0.1:1",
        "base_model": BASE,
        "base_model_digest": "sha256:base",
        "capacity": Capacity(
            **({"max_loras": 2, "max_lora_rank": 64, "cpu_bytes": 100 * MB, "max_num_seqs": 4} | capacity)
        ),
        "status": WorkerStatus(
            holdings=Holdings(holds), cpu_bytes_used=sum(one.cpu_bytes for one in holds), **(status or {})
        ),
    }
    return Worker(**(fields | more))
