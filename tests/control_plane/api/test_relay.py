"""Generate through the control plane, with a worker that makes its tokens up."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
from redis.asyncio import Redis

from control_plane.quotas.types import Limits, Quota
from protos.inference.v1 import inference_pb2 as pb
from protos.registry.v1 import registry_pb2
from tests.control_plane.adapter_files import write_adapter
from tests.control_plane.fake_worker import BASE_MODEL, Script
from tests.control_plane.replica import Replica, details, eventually, ready, replica


def request(model: str = BASE_MODEL, **fields: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(model=model, text="hello", sampling=pb.SamplingParams(max_tokens=16), **fields)


async def register(control: Replica, root: Path, name: str = "bot", fill: float = 1.0) -> Any:
    directory = write_adapter(root / "acme" / name, fill=fill)
    message = registry_pb2.RegisterAdapterRequest(name=name, source=str(directory))
    return await control.registry.RegisterAdapter(message, metadata=control.as_("acme"))


async def test_streams_receipt_deltas_and_end_as_the_worker_sent_them(redis: Redis, tmp_path: Path) -> None:
    async with replica(redis, tmp_path) as control, control.worker().run():
        await ready(control, "worker-0")
        call = control.inference.Generate(request(), metadata=control.as_("acme-user"))
        messages = [message async for message in call]
        assert [message.WhichOneof("event") for message in messages] == [
            "started",
            *["delta"] * 3,
            "finished",
        ]
        assert "".join(message.delta.text for message in messages) == "t0 t1 t2 "


async def test_worker_gets_request_id_trace_and_a_grant_for_exactly_this(
    redis: Redis, tmp_path: Path
) -> None:
    async with replica(redis, tmp_path) as control, control.worker().run() as worker:
        await ready(control, "worker-0")
        adapter = await register(control, tmp_path)
        trace = ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
        metadata = (*control.as_("acme-user"), trace)
        await _read(control.inference.Generate(request("bot"), metadata=metadata))
        sent = worker.metadata[0]
        assert sent["traceparent"] == trace[1]
        lease = worker.leases[0]
        claims = jwt.decode(
            sent["loraplane-grant"],
            lease.grant_keys[0].public_key_pem,
            algorithms=["EdDSA"],
            audience="loraplane-worker",
        )
        assert claims["jti"] == sent["loraplane-request-id"]
        assert (claims["sub"], claims["wid"], claims["base"], claims["mx"]) == (
            "acme",
            "worker-0",
            BASE_MODEL,
            16,
        )
        assert claims["ad"]["d"] == adapter.revisions[0].digest


async def test_the_api_key_never_reaches_the_worker(redis: Redis, tmp_path: Path) -> None:
    async with replica(redis, tmp_path) as control, control.worker().run() as worker:
        await ready(control, "worker-0")
        await _read(control.inference.Generate(request(), metadata=control.as_("acme-user")))
        assert "authorization" not in worker.metadata[0]


async def test_usage_is_settled_before_the_client_hears_of_the_end(redis: Redis, tmp_path: Path) -> None:
    async with replica(redis, tmp_path) as control, control.worker().run():
        await ready(control, "worker-0")
        async for message in control.inference.Generate(request(), metadata=control.as_("acme-user")):
            if message.HasField("finished"):
                usage = await control.plane.quotas.usage("acme")
                assert (usage.prompt_tokens, usage.completion_tokens, usage.concurrent_requests) == (5, 3, 0)


async def test_client_that_leaves_cancels_the_worker_and_pays_for_what_it_got(
    redis: Redis, tmp_path: Path
) -> None:
    script = Script(num_tokens=9, hold_after=2)
    async with replica(redis, tmp_path) as control, control.worker(script=script).run() as worker:
        await ready(control, "worker-0")
        call = control.inference.Generate(request(), metadata=control.as_("acme-user"))
        async for message in call:
            if message.delta.text == "t1 ":
                break
        call.cancel()
        async with asyncio.timeout(2):
            await worker.cancelled.wait()
        usage = await _settled(control)
        assert (usage.prompt_tokens, usage.completion_tokens, usage.requests) == (5, 2, 1)


async def test_deadline_passes_to_the_worker_and_ends_the_call(redis: Redis, tmp_path: Path) -> None:
    script = Script(hold_after=1)
    async with replica(redis, tmp_path) as control, control.worker(script=script).run() as worker:
        await ready(control, "worker-0")
        call = control.inference.Generate(request(), timeout=0.4, metadata=control.as_("acme-user"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _read(call)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        deadline = worker.deadlines[0]
        assert deadline is not None
        # gRPC rounds a time-out up to whole milliseconds on its way.
        assert 0 < deadline <= 0.41
        await _settled(control)


async def test_worker_that_dies_mid_stream_is_unavailable_with_retry_info(
    redis: Redis, tmp_path: Path
) -> None:
    script = Script(hold_after=1)
    async with replica(redis, tmp_path) as control, control.worker(script=script).run() as worker:
        await ready(control, "worker-0")
        call = control.inference.Generate(request(), metadata=control.as_("acme-user"))
        reading = asyncio.create_task(_read(call))
        await worker.streaming.wait()
        await worker.stop()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await reading
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert details(caught.value)["RetryInfo"].retry_delay.ToMilliseconds() > 0
        assert (await _settled(control)).completion_tokens == 1


async def test_another_worker_takes_over_before_the_first_message(redis: Redis, tmp_path: Path) -> None:
    draining = Script(status_error=grpc.StatusCode.UNAVAILABLE)
    async with (
        replica(redis, tmp_path) as control,
        control.worker("worker-a", draining).run() as bad,
        control.worker("worker-b").run() as good,
    ):
        await ready(control, "worker-a", "worker-b")
        for _ in range(8):
            await _read(control.inference.Generate(request(), metadata=control.as_("acme-user")))
        assert len(good.requests) == 8
        usage = await control.plane.quotas.usage("acme")
        assert (usage.requests, usage.completion_tokens, usage.concurrent_requests) == (8, 24, 0)
        assert bad.requests  # the first choice of some: only so does another take over


async def test_no_other_worker_is_tried_after_the_first_message(redis: Redis, tmp_path: Path) -> None:
    dying = Script(status_error=grpc.StatusCode.UNAVAILABLE, error_after=1)
    async with (
        replica(redis, tmp_path) as control,
        control.worker("worker-a", dying).run() as one,
        control.worker("worker-b", dying).run() as other,
    ):
        await ready(control, "worker-a", "worker-b")
        with pytest.raises(grpc.aio.AioRpcError):
            await _read(control.inference.Generate(request(), metadata=control.as_("acme-user")))
        assert len(one.requests) + len(other.requests) == 1


async def test_status_and_details_of_the_worker_pass_through(redis: Redis, tmp_path: Path) -> None:
    script = Script(status_error=grpc.StatusCode.FAILED_PRECONDITION)
    async with replica(redis, tmp_path) as control, control.worker(script=script).run():
        await ready(control, "worker-0")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _read(control.inference.Generate(request(), metadata=control.as_("acme-user")))
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert details(caught.value)["ErrorInfo"].domain == "loraplane.worker"
        usage = await _settled(control)
        assert (usage.prompt_tokens, usage.completion_tokens, usage.requests) == (0, 0, 1)


async def test_quota_refusal_says_which_limit_and_when_to_retry(redis: Redis, tmp_path: Path) -> None:
    async with replica(redis, tmp_path) as control, control.worker().run() as worker:
        await ready(control, "worker-0")
        await control.plane.quotas.set(Quota(tenant="acme", limits=Limits(requests_per_minute=1)))
        await _read(control.inference.Generate(request(), metadata=control.as_("acme-user")))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _read(control.inference.Generate(request(), metadata=control.as_("acme-user")))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        found = details(caught.value)
        assert found["QuotaFailure"].violations[0].subject == "tenant:acme"
        assert "requests_per_minute = 1" in found["QuotaFailure"].violations[0].description
        assert 0 < found["RetryInfo"].retry_delay.ToMilliseconds() <= 60_000
        assert len(worker.requests) == 1


async def test_a_model_of_another_tenant_is_not_found(redis: Redis, tmp_path: Path) -> None:
    async with replica(redis, tmp_path) as control, control.worker().run():
        await ready(control, "worker-0")
        await register(control, tmp_path)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _read(control.inference.Generate(request("acme/bot"), metadata=control.as_("globex-user")))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert details(caught.value)["ResourceInfo"].resource_name == "acme/bot"


async def test_models_are_listed_with_their_lineage(redis: Redis, tmp_path: Path) -> None:
    async with replica(redis, tmp_path) as control, control.worker().run():
        await ready(control, "worker-0")
        adapter = await register(control, tmp_path)
        answer = await control.inference.ListModels(pb.ListModelsRequest(), metadata=control.as_("acme-user"))
        base, bot = sorted(answer.models, key=lambda model: model.parent)
        assert (base.id, base.parent, base.revision) == (BASE_MODEL, "", 0)
        assert (bot.id, bot.parent, bot.revision) == ("bot", BASE_MODEL, 1)
        assert (bot.root, bot.digest) == (adapter.revisions[0].source, adapter.revisions[0].digest)
        others = await control.inference.ListModels(
            pb.ListModelsRequest(), metadata=control.as_("globex-user")
        )
        assert [model.id for model in others.models] == [BASE_MODEL]


async def test_models_are_paged(redis: Redis, tmp_path: Path) -> None:
    async with replica(redis, tmp_path) as control, control.worker().run():
        await ready(control, "worker-0")
        for number in range(3):
            await register(control, tmp_path, f"bot-{number}")
        seen, token = [], ""
        while True:
            message = pb.ListModelsRequest(page_size=2, page_token=token)
            page = await control.inference.ListModels(message, metadata=control.as_("acme-user"))
            seen += [model.id for model in page.models]
            token = page.next_page_token
            if not token:
                break
        assert seen == ["bot-0", "bot-1", "bot-2", BASE_MODEL]


async def test_tokenize_is_relayed(redis: Redis, tmp_path: Path) -> None:
    async with replica(redis, tmp_path) as control, control.worker().run() as worker:
        await ready(control, "worker-0")
        message = pb.TokenizeRequest(model=BASE_MODEL, text="hi")
        answer = await control.inference.Tokenize(message, metadata=control.as_("acme-user"))
        assert list(answer.token_ids) == [104, 105]
        assert "loraplane-grant" in worker.metadata[0]


async def _read(call: Any) -> list[pb.GenerateResponse]:
    return [message async for message in call]


async def _settled(control: Replica) -> Any:
    """The usage once no request is in flight any more."""
    async with asyncio.timeout(3):
        await control.plane.admission.idle()
    usage = await control.plane.quotas.usage("acme")
    assert usage.concurrent_requests == 0
    return usage


async def test_a_request_that_outlives_its_workers_restart_is_unavailable(
    redis: Redis, tmp_path: Path
) -> None:
    script = Script(hold_after=1)
    async with replica(redis, tmp_path) as control, control.worker(script=script).run() as older:
        await ready(control, "worker-0")
        call = control.inference.Generate(request(), metadata=control.as_("acme-user"))
        reading = asyncio.create_task(_read(call))
        await older.streaming.wait()
        async with control.worker().run() as newer:
            await eventually(lambda: control.plane.fleet.get("worker-0").instance_id == newer.instance_id)
            await _read(control.inference.Generate(request(), metadata=control.as_("acme-user")))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await reading
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "RetryInfo" in details(caught.value)
