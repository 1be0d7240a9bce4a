"""A replica's metrics, scraped over HTTP while a worker serves through it."""

import asyncio
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError
from redis.asyncio import Redis

from control_plane.config import ControlSettings
from protos.inference.v1 import inference_pb2
from protos.quota.v1 import quota_pb2
from protos.registry.v1 import registry_pb2
from tests.control_plane.adapter_files import write_adapter
from tests.control_plane.fake_worker import BASE_MODEL, Script
from tests.control_plane.replica import Replica, eventually, ready, replica

GENERATE = "/loraplane.inference.v1.Inference/Generate"


async def scrape(control: Replica) -> list[Any]:
    assert control.plane.exporter is not None
    url = f"http://{control.plane.exporter.address}/metrics"

    def read() -> str:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return str(answer.read().decode())

    text = await asyncio.to_thread(read)
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


async def value(control: Replica, name: str, **labels: str) -> float:
    samples = await scrape(control)
    return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


def generate(control: Replica, model: str = BASE_MODEL) -> Any:
    request = inference_pb2.GenerateRequest(model=model, text="hello")
    return control.inference.Generate(request, metadata=control.as_("acme-user"))


async def test_calls_tokens_and_rejections_are_counted_by_tenant(redis: Redis, tmp_path: Path) -> None:
    async with replica(redis, tmp_path) as control, control.worker().run():
        await ready(control, "worker-0")
        limits = quota_pb2.Limits(requests_per_minute=1)
        await control.quotas.SetQuota(
            quota_pb2.SetQuotaRequest(quota=quota_pb2.Quota(tenant="acme", limits=limits)),
            metadata=control.as_("admin"),
        )
        last = [message async for message in generate(control)][-1]
        with pytest.raises(grpc.aio.AioRpcError):
            [message async for message in generate(control)]
        count = "loraplane_call_seconds_count"
        assert await value(control, count, method=GENERATE, code="OK") == 1
        assert await value(control, count, method=GENERATE, code="RESOURCE_EXHAUSTED") == 1
        rejected = {"tenant": "acme", "limit": "requests_per_minute"}
        assert await value(control, "loraplane_quota_rejections_total", **rejected) == 1
        tokens = {
            kind: await value(control, "loraplane_settled_tokens_total", tenant="acme", kind=kind)
            for kind in ("prompt", "completion")
        }
        used = last.finished.usage
        assert tokens == {"prompt": used.prompt_tokens, "completion": used.completion_tokens}
        assert await value(control, "loraplane_settled_requests_total", tenant="acme") == 1
        assert await value(control, "loraplane_relay_first_token_seconds_count") == 1


async def test_workers_slots_and_holders_of_each_adapter_are_shown(redis: Redis, tmp_path: Path) -> None:
    async with replica(redis, tmp_path) as control, control.worker(script=Script(fills_slots=True)).run():
        await ready(control, "worker-0")
        source = str(write_adapter(tmp_path / "acme" / "bot"))
        await control.registry.RegisterAdapter(
            registry_pb2.RegisterAdapterRequest(name="bot", source=source), metadata=control.as_("acme")
        )
        bot = {"tenant": "acme", "adapter": "bot"}

        async def held(tier: str) -> bool:
            return await value(control, "loraplane_adapter_holders", tier=tier, **bot) == 1

        await eventually(lambda: held("cpu"))
        [message async for message in generate(control, "bot")]
        await eventually(lambda: held("slot"))
        assert await value(control, "loraplane_workers", state="ready") == 1
        assert await value(control, "loraplane_workers", state="lost") == 0
        assert await value(control, "loraplane_worker_slots", worker="worker-0", state="taken") == 1
        assert await value(control, "loraplane_leader") == 1


async def test_metrics_can_be_left_out(redis: Redis, tmp_path: Path) -> None:
    async with replica(redis, tmp_path, metrics_listen="") as control:
        assert control.plane.exporter is None


def test_metrics_beyond_the_machine_need_tls_or_consent() -> None:
    with pytest.raises(ValidationError, match="metrics_listen"):
        ControlSettings(metrics_listen="0.0.0.0:9400")
    ControlSettings(metrics_listen="0.0.0.0:9400", allow_insecure=True)
