"""Traffic over revisions through the relay, and the canary that rolls itself back."""

from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from redis.asyncio import Redis

from protos.inference.v1 import inference_pb2
from protos.registry.v1 import registry_pb2 as pb
from protos.sync.v1 import sync_pb2 as sync
from tests.control_plane.adapter_files import write_adapter
from tests.control_plane.fake_worker import Script
from tests.control_plane.replica import Replica, details, eventually, ready, replica


async def two_revisions(control: Replica, root: Path) -> Any:
    as_acme = control.as_("acme")
    source = str(write_adapter(root / "acme" / "bot", fill=1.0))
    await control.registry.RegisterAdapter(
        pb.RegisterAdapterRequest(name="bot", source=source), metadata=as_acme
    )
    source = str(write_adapter(root / "acme" / "bot-2", fill=2.0))
    return await control.registry.PublishRevision(
        pb.PublishRevisionRequest(name="bot", source=source, keep_current=True), metadata=as_acme
    )


async def generate(control: Replica, routing_key: str | None = None) -> int:
    """The revision that a request got."""
    message = inference_pb2.GenerateRequest(model="bot", text="hello", routing_key=routing_key)
    call = control.inference.Generate(message, metadata=control.as_("acme-user"))
    events = [event async for event in call]
    return int(events[0].started.revision)


async def test_a_routing_key_stays_on_its_revision_and_requests_without_are_divided(
    redis: Redis, tmp_path: Path
) -> None:
    async with replica(redis, tmp_path) as control, control.worker().run():
        await ready(control, "worker-0")
        await two_revisions(control, tmp_path)
        shares = [pb.TrafficWeight(revision=1, weight=1), pb.TrafficWeight(revision=2, weight=1)]
        adapter = await control.registry.SetTraffic(
            pb.SetTrafficRequest(name="bot", traffic=shares), metadata=control.as_("acme")
        )
        assert list(adapter.traffic) == shares
        assert {await generate(control, "ann") for _ in range(5)} in ({1}, {2})
        assert set(Counter([await generate(control) for _ in range(30)])) == {1, 2}


async def test_a_canary_that_fails_is_rolled_back_and_the_decision_is_visible(
    redis: Redis, tmp_path: Path
) -> None:
    script = Script()
    async with replica(redis, tmp_path) as control, control.worker(script=script).run():
        await ready(control, "worker-0")
        adapter = await two_revisions(control, tmp_path)
        script.failing.add(adapter.revisions[1].digest)
        started = await control.registry.StartCanary(
            pb.StartCanaryRequest(name="bot", percent=50, min_requests=3), metadata=control.as_("acme")
        )
        assert (started.canary.revision, started.canary.window_s) == (2, 60)

        async def shown() -> Any:
            return await control.registry.GetAdapter(
                pb.GetAdapterRequest(name="bot"), metadata=control.as_("acme")
            )

        async def rolled_back() -> Any:
            with suppress(grpc.aio.AioRpcError):
                await generate(control)
            adapter = await shown()
            return adapter if not adapter.HasField("canary") else None

        ended = await eventually(rolled_back)
        assert ended.decisions[-1].kind == pb.TrafficDecision.KIND_CANARY_ROLLED_BACK
        assert "failed" in ended.decisions[-1].reason
        assert {await generate(control) for _ in range(5)} == {1}


async def test_a_canary_whose_direct_requests_fail_is_rolled_back(redis: Redis, tmp_path: Path) -> None:
    async with replica(redis, tmp_path) as control, control.worker().run() as worker:
        await ready(control, "worker-0")
        await two_revisions(control, tmp_path)
        await control.registry.StartCanary(
            pb.StartCanaryRequest(name="bot", percent=50, min_requests=3), metadata=control.as_("acme")
        )
        routed = inference_pb2.RouteRequest(model="bot", prompt_tokens=5)
        for _ in range(40):
            answer = await control.inference.Route(routed, metadata=control.as_("acme-user"))
            failed = answer.revision == 2
            usage = sync.DirectUsage(prompt_tokens=5, failed=failed, first_token_s=None if failed else 0.1)
            worker.tell(sync.DirectRequest(grant=answer.grant, usage=usage))

        async def rolled_back() -> Any:
            adapter = await control.registry.GetAdapter(
                pb.GetAdapterRequest(name="bot"), metadata=control.as_("acme")
            )
            return adapter if not adapter.HasField("canary") else None

        adapter = await eventually(rolled_back)
        assert adapter.decisions[-1].kind == pb.TrafficDecision.KIND_CANARY_ROLLED_BACK


async def test_every_revision_with_traffic_is_loaded_ahead(redis: Redis, tmp_path: Path) -> None:
    async with replica(redis, tmp_path) as control, control.worker().run() as worker:
        await ready(control, "worker-0")
        adapter = await two_revisions(control, tmp_path)
        await eventually(lambda: adapter.revisions[0].digest in worker.held)
        assert adapter.revisions[1].digest not in worker.held
        await control.registry.StartCanary(
            pb.StartCanaryRequest(name="bot", percent=1), metadata=control.as_("acme")
        )
        await eventually(lambda: adapter.revisions[1].digest in worker.held)
        assert adapter.revisions[0].digest in worker.held


async def test_a_bad_canary_names_the_field(redis: Redis, tmp_path: Path) -> None:
    async with replica(redis, tmp_path) as control:
        await two_revisions(control, tmp_path)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await control.registry.StartCanary(
                pb.StartCanaryRequest(name="bot", percent=100), metadata=control.as_("acme")
            )
        assert details(caught.value)["BadRequest"].field_violations[0].field == "percent"
