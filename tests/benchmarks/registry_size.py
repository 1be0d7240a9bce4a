"""Whether the registry is as fast with 100,000 adapters as with 100: the same calls of the same RPCs.

Two replicas in this process, each on a Valkey that syncs every write, as the product's. In both the
caller's tenant has 100 adapters, so that a page has the same rows; the large one has 999 tenants more.
"""

import asyncio
import math
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import uvloop
from redis.asyncio import Redis

from control_plane.registry.store import AdapterStore
from control_plane.registry.types import Adapter, AdapterKey
from control_plane.store.client import connect
from control_plane.store.valkey import EmbeddedValkey
from control_plane.workers.plan_costs import Cause
from protos.inference.v1 import inference_pb2
from protos.registry.v1 import registry_pb2 as pb
from tests.benchmarks.rates import interleaved, rate
from tests.control_plane.placement.examples import revision
from tests.control_plane.replica import Replica, eventually, replica

TENANT = "acme"  # one of whose keys a test's replica has
ROWS, TENANTS = 100, 1000  # a page at its default size; ROWS · TENANTS adapters in the large registry
WRITERS, CALLERS = 50, 8
CALLS = {"get": 50, "list": 5, "list by label": 5, "models": 10, "change": 25}  # of each caller, a round
LEASE_S = 30.0  # both replicas share one loop, which is late while a round runs
READ_S = 300.0  # for the planner to have read the large registry

Call = Callable[[int], Awaitable[Any]]


def measure() -> dict[str, float]:
    """The figure: the geometric mean over the calls."""
    with tempfile.TemporaryDirectory() as directory:
        ratios = uvloop.run(_ratios(Path(directory)))
    for name, ratio in ratios.items():
        print(f"  {name:<14} {ratio:.3f}")
    return {"registry_flat_ratio": math.prod(ratios.values()) ** (1 / len(ratios))}


async def _ratios(root: Path) -> Mapping[str, float]:
    async with AsyncExitStack() as stack:
        calls = []
        for tenants in (TENANTS, 1):
            directory = root / str(tenants)
            directory.mkdir()
            valkey = stack.enter_context(EmbeddedValkey(directory / "valkey"))
            redis = connect(valkey.url)
            stack.push_async_callback(redis.aclose)
            await _fill(redis, tenants)
            control = await stack.enter_async_context(replica(redis, directory, leader_lease_ttl_s=LEASE_S))
            costs = control.plane.desk.costs
            await eventually(lambda: costs[Cause.READ].changes >= tenants * ROWS, READ_S)  # noqa: B023
            calls.append(_calls(control))
        many, few = calls
        ratios = {}
        for name, count in CALLS.items():
            ratios[name] = await interleaved(
                lambda: rate(many[name], CALLERS, count),  # noqa: B023
                lambda: rate(few[name], CALLERS, count),  # noqa: B023
            )
        return ratios


async def _fill(redis: Redis, tenants: int) -> None:
    store = AdapterStore(redis)
    numbers = iter(range(tenants * ROWS))

    async def write() -> None:
        for number in numbers:
            await store.commit(None, _stored(number, tenants))

    await asyncio.gather(*(write() for _ in range(WRITERS)))


def _stored(number: int, tenants: int) -> Adapter:
    tenant = f"t{number % tenants}" if number % tenants else TENANT
    name = f"bot-{number // tenants}"
    return Adapter(
        key=AdapterKey(tenant, name),
        base_model="llama",
        revisions=(revision(f"{tenant}-{name}"),),
        current_revision=1,
        generation=0,
        resource_version=0,
        labels={"fleet": tenant},
    )


def _calls(control: Replica) -> Mapping[str, Call]:
    caller = control.as_(TENANT)
    labelled = pb.ListAdaptersRequest(labels={"fleet": TENANT})
    tiers = (pb.PIN_TIER_CPU, pb.PIN_TIER_SLOT)

    def name(number: int) -> str:
        return f"bot-{number % ROWS}"

    async def page(request: pb.ListAdaptersRequest) -> None:
        answer = await control.registry.ListAdapters(request, metadata=caller)
        assert len(answer.adapters) == ROWS, "both sides must have the same rows"

    return {
        "get": lambda number: control.registry.GetAdapter(
            pb.GetAdapterRequest(name=name(number)), metadata=caller
        ),
        "list": lambda _: page(pb.ListAdaptersRequest()),
        "list by label": lambda _: page(labelled),
        "models": lambda _: control.inference.ListModels(
            inference_pb2.ListModelsRequest(page_size=ROWS), metadata=caller
        ),
        "change": lambda number: control.registry.PinAdapter(
            pb.PinAdapterRequest(name=name(number), tier=tiers[number // ROWS % 2]), metadata=caller
        ),
    }
