"""A control-plane replica for tests: the real composition on a real Valkey, on a free port."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from inspect import isawaitable
from pathlib import Path
from typing import Any

import grpc
from google.rpc import status_pb2
from grpc_status import rpc_status
from redis.asyncio import Redis

from control_plane.access.types import Role
from control_plane.config import ControlSettings
from control_plane.plane import Plane
from control_plane.running import running
from protos.access.v1 import access_pb2_grpc
from protos.fleet.v1 import fleet_pb2_grpc
from protos.inference.v1 import inference_pb2_grpc
from protos.quota.v1 import quota_pb2_grpc
from protos.registry.v1 import registry_pb2_grpc
from tests.control_plane.fake_worker import FakeWorker, Script

LEASE_S = 0.6


@dataclass
class Replica:
    """A running replica, with a key of each role."""

    plane: Plane
    channel: grpc.aio.Channel
    keys: dict[str, str]  # admin, worker, acme (tenant-admin), acme-user, globex, globex-user

    def __post_init__(self) -> None:
        self.registry: Any = registry_pb2_grpc.AdapterRegistryStub(self.channel)
        self.quotas: Any = quota_pb2_grpc.TenantQuotasStub(self.channel)
        self.fleet: Any = fleet_pb2_grpc.FleetStub(self.channel)
        self.inference: Any = inference_pb2_grpc.InferenceStub(self.channel)
        self.access: Any = access_pb2_grpc.AccessKeysStub(self.channel)

    def as_(self, who: str) -> tuple[tuple[str, str], ...]:
        """The metadata of a caller."""
        return (("authorization", f"Bearer {self.keys[who]}"),)

    def worker(self, worker_id: str = "worker-0", script: Script | None = None, **more: Any) -> FakeWorker:
        """A worker of this replica; not started."""
        return FakeWorker(self.plane.address, self.keys["worker"], worker_id, script or Script(), **more)


@asynccontextmanager
async def replica(redis: Redis, root: Path, **settings: Any) -> AsyncIterator[Replica]:
    """Run a replica for the time of the block."""
    defaults = {
        "listen": "127.0.0.1:0",
        "state_dir": root,
        "adapter_roots": (root,),
        "worker_lease_ttl_s": LEASE_S,
        "leader_lease_ttl_s": LEASE_S,
        "command_timeout_s": 5.0,
        "shutdown_grace_s": 1.0,
        "allow_adapter_changes": True,
    }
    async with (
        running(ControlSettings(**(defaults | settings)), redis) as plane,
        grpc.aio.insecure_channel(plane.address) as channel,
    ):
        yield Replica(plane, channel, await _keys(plane))


async def _keys(plane: Plane) -> dict[str, str]:
    wanted = {
        "admin": (Role.ADMIN, ""),
        "worker": (Role.WORKER, ""),
        "acme": (Role.TENANT_ADMIN, "acme"),
        "acme-user": (Role.INFERENCE, "acme"),
        "globex": (Role.TENANT_ADMIN, "globex"),
        "globex-user": (Role.INFERENCE, "globex"),
    }
    return {name: (await plane.keys.create(role, tenant)).secret for name, (role, tenant) in wanted.items()}


async def eventually(condition: Callable[[], Any], timeout_s: float = 5.0) -> Any:
    """Wait until a condition (or what it gives to await) holds and return what it returned."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = condition()
        if isawaitable(found):
            found = await found
        if found:
            return found
        assert time.monotonic() < deadline, "it never came to hold"
        await asyncio.sleep(0.005)


async def ready(replica: Replica, *worker_ids: str) -> None:
    """Wait until the replica knows these workers as live."""
    await eventually(
        lambda: set(worker_ids) <= {w.worker_id for w in replica.plane.fleet.workers() if w.live}
    )


def details(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    """The google.rpc details of a failed call, by type name."""
    from google.protobuf import symbol_database

    status: status_pb2.Status = rpc_status.from_call(_SyncView(error))
    unpacked = {}
    for packed in status.details:
        message = symbol_database.Default().GetSymbol(packed.TypeName())()
        packed.Unpack(message)
        unpacked[type(message).__name__] = message
    return unpacked


class _SyncView:
    """What grpc_status wants of a call."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        self._error = error

    def trailing_metadata(self) -> Any:
        return self._error.trailing_metadata()

    def code(self) -> grpc.StatusCode:
        return self._error.code()

    def details(self) -> str | None:
        return self._error.details()
