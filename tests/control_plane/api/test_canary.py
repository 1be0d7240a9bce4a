"""Traffic over revisions through the relay, and the canary that rolls itself back."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from redis.asyncio import Redis

from protos.inference.v1 import inference_pb2
from protos.registry.v1 import registry_pb2 as pb
from protos.sync.v1 import sync_pb2 as sync
from tests.control_plane.adapter_files import write_adapter
from tests.control_plane.fake_worker import FakeWorker, Script
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


@asynccontextmanager
async def trial_of_three(
    redis: Redis, root: Path, max_first_token_ratio: float = 1000
) -> AsyncIterator[tuple[Replica, FakeWorker]]:
    """Revision 2 of bot on trial against revision 1, to be judged after three requests of each."""
    async with replica(redis, root) as control, control.worker().run() as worker:
        await ready(control, "worker-0")
        await two_revisions(control, root)
        canary = pb.StartCanaryRequest(
            name="bot", percent=50, min_requests=3, max_first_token_ratio=max_first_token_ratio
        )
        await control.registry.StartCanary(canary, metadata=control.as_("acme"))
        for _ in range(3):
            await ask(control, 1)
        yield control, worker


async def ask(control: Replica, revision: int, timeout_s: float | None = None) -> None:
    """One request for one revision."""
    message = inference_pb2.GenerateRequest(model=f"bot@{revision}", text="hello")
    call = control.inference.Generate(message, timeout=timeout_s, metadata=control.as_("acme-user"))
    async for _ in call:
        pass


async def held(control: Replica, worker: FakeWorker) -> asyncio.Task[None]:
    """A request for the canary that waits in the worker."""
    worker.streaming.clear()
    asked = asyncio.create_task(ask(control, 2))
    await worker.streaming.wait()
    return asked


async def idle(control: Replica) -> bool:
    return not (await control.plane.quotas.usage("acme")).concurrent_requests


async def decided(control: Replica) -> str:
    """Why the canary was rolled back."""

    async def ended() -> Any:
        request = pb.GetAdapterRequest(name="bot")
        adapter = await control.registry.GetAdapter(request, metadata=control.as_("acme"))
        return None if adapter.HasField("canary") else adapter.decisions[-1]

    decision = await eventually(ended)
    assert decision.kind == pb.TrafficDecision.KIND_CANARY_ROLLED_BACK
    return str(decision.reason)


async def test_a_canary_that_hangs_until_its_callers_deadlines_is_rolled_back(
    redis: Redis, tmp_path: Path
) -> None:
    async with trial_of_three(redis, tmp_path) as (control, worker):
        worker.script.hold_after = 0
        asked = [ask(control, 2, timeout_s=1.0) for _ in range(3)]
        for error in await asyncio.gather(*asked, return_exceptions=True):
            assert isinstance(error, grpc.aio.AioRpcError)
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "failed 3 of 3" in await decided(control)


@pytest.mark.parametrize("code", [grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED])
async def test_a_worker_without_room_or_time_for_a_first_token_counts_against_a_canary_and_after_it_not(
    redis: Redis, tmp_path: Path, code: grpc.StatusCode
) -> None:
    async with trial_of_three(redis, tmp_path) as (control, worker):
        worker.script.status_error = code
        for error_after in (1, 1, 1, 0):
            worker.script.error_after = error_after
            with pytest.raises(grpc.aio.AioRpcError):
                await ask(control, 2)
        assert "failed 1 of 4" in await decided(control)


async def test_callers_who_leave_or_run_out_of_time_after_a_token_say_nothing_of_a_canary(
    redis: Redis, tmp_path: Path
) -> None:
    async with trial_of_three(redis, tmp_path) as (control, worker):
        worker.script.hold_after = 1
        asked = [ask(control, 2, timeout_s=1.0) for _ in range(3)]
        for error in await asyncio.gather(*asked, return_exceptions=True):
            assert isinstance(error, grpc.aio.AioRpcError)
        worker.script.hold_after = 0
        for _ in range(3):
            (await held(control, worker)).cancel()
        await eventually(lambda: idle(control))
        worker.script.hold_after, worker.script.status_error = None, grpc.StatusCode.INTERNAL
        with pytest.raises(grpc.aio.AioRpcError):
            await ask(control, 2)
        assert "failed 1 of 7" in await decided(control)


@pytest.mark.parametrize(("load_s", "reason"), [(0.0, "first token after"), (60.0, "failed 1 of 4")])
async def test_a_canary_whose_first_tokens_are_late_is_rolled_back_unless_loading_is_why(
    redis: Redis, tmp_path: Path, load_s: float, reason: str
) -> None:
    async with trial_of_three(redis, tmp_path, max_first_token_ratio=2) as (control, worker):
        worker.script.hold_after, worker.script.load_s = 0, load_s
        for _ in range(3):
            worker.go_on.clear()
            asked = await held(control, worker)
            await asyncio.sleep(0.3)  # the time itself is what is measured
            worker.go_on.set()
            await asked
        worker.script.status_error = grpc.StatusCode.INTERNAL
        with pytest.raises(grpc.aio.AioRpcError):
            await ask(control, 2)
        assert reason in await decided(control)


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
