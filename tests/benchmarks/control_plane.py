"""The control plane on a request's way: admission against an empty RPC, the relay against a bare stream.

Everything is in one process on uvloop, as the control plane runs, beside one Valkey. The figure is
with the product's own Valkey, which syncs every write before it answers; `_no_sync` is the same without.
"""

import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

import grpc
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from redis.asyncio import Redis

from control_plane.store.client import connect
from control_plane.store.valkey import EmbeddedValkey
from protos.inference.v1 import inference_pb2, inference_pb2_grpc
from protos.registry.v1 import registry_pb2
from tests.benchmarks.rates import interleaved, rate
from tests.control_plane.adapter_files import write_adapter
from tests.control_plane.fake_worker import BASE_MODEL, Script
from tests.control_plane.replica import ready, replica

CALLERS, CALLS = 32, 40  # of each caller, a round
STREAMS, MESSAGES = 8, 400

Ratio = Callable[[Redis, Path], Awaitable[float]]


def measure_admission() -> dict[str, float]:
    """Route against an empty RPC, with and without syncing."""
    return {
        "admission_ratio": _measured(admission_ratio, "always"),
        "admission_ratio_no_sync": _measured(admission_ratio, "no"),
    }


def measure_relay() -> dict[str, float]:
    """Messages through the relay against a bare stream; none of them is written anywhere."""
    return {"relay_ratio": _measured(relay_ratio, "always")}


def _measured(ratio: Ratio, fsync: Literal["always", "no"]) -> float:
    async def measured() -> float:
        with (
            tempfile.TemporaryDirectory() as directory,
            EmbeddedValkey(Path(directory) / "valkey", fsync=fsync) as valkey,
        ):
            redis = connect(valkey.url)
            try:
                return await ratio(redis, Path(directory))
            finally:
                await redis.aclose()

    return uvloop.run(measured())


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
            lambda: rate(lambda _: control.inference.Route(request, metadata=caller), CALLERS, CALLS),
            lambda: rate(lambda _: health.Check(empty), CALLERS, CALLS),
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
