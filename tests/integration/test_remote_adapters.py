"""An adapter in a bucket or in the hub: resolved, placed, read by the worker, answered as PEFT does."""

import pytest

from protos.registry.v1 import registry_pb2 as registry
from tests.hub_server import hub_server
from tests.integration.stack import Stack
from tests.s3.service import KEY, SECRET, s3_service

pytestmark = pytest.mark.processes

PROMPT = [1, 2, 3]


@pytest.fixture
def service():
    with s3_service() as service:
        service.create_bucket("adapters")
        yield service


@pytest.fixture
def hub():
    with hub_server() as hub:
        yield hub


@pytest.fixture
def stack(tiny, tmp_path, service, hub, monkeypatch):
    """Both planes read one environment; no directory is allowed."""
    environment = {
        "RESOLVERS": "filesystem,s3,hub",
        "S3_BUCKETS": "adapters",
        "S3_TEMPLATE": "s3://adapters/{tenant}/{name}",
        "S3_ENDPOINT_URL": service.url,
        "S3_REGION": "us-east-1",
        "S3_ACCESS_KEY_ID": KEY,
        "S3_SECRET_ACCESS_KEY": SECRET,
        "HUB_REPOS": "acme/*",
        "HUB_ENDPOINT": hub.url,
    }
    for name, value in environment.items():
        monkeypatch.setenv(f"LORAPLANE_{name}", value)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with Stack(
        tmp_path,
        model=tiny.model,
        adapter_roots=[],
        max_lora_rank=16,
        max_model_len=256,
        kv_cache_bytes=4 << 20,
        num_threads=1,
        disk_cache_dir=tmp_path / "cache",
        disk_cache_bytes=10 << 20,
    ) as running:
        yield running
    for process in (*running.control_planes, *running.workers):
        assert "Unclosed" not in process.log, "a connection was left open"


async def test_adapters_of_bucket_and_hub_answer_as_peft_does(stack, tiny, service, hub):
    service.upload(tiny.source(0), "adapters", "acme/a0")
    hub.commit("acme/a1", tiny.source(1))
    async with stack.client() as client:
        for name, source, where in (
            ("a0", "", "s3://adapters/acme/a0#"),
            ("a1", "hf://acme/a1", "hf://acme/a1@"),
        ):
            request = registry.RegisterAdapterRequest(tenant="acme", name=name, source=source)
            adapter = await client.registry.RegisterAdapter(request, metadata=client.metadata)
            assert adapter.revisions[0].source.startswith(where)
        for number in (0, 1):
            answer = await client.generate(f"acme/a{number}", PROMPT, max_tokens=8)
            assert answer.token_ids == tiny.oracle.greedy(PROMPT, tiny.source(number), 8)


async def test_new_objects_are_served_once_they_are_published_and_not_before(stack, tiny, service):
    service.upload(tiny.source(0), "adapters", "acme/a0")
    async with stack.client() as client:
        request = registry.RegisterAdapterRequest(tenant="acme", name="a0")
        await client.registry.RegisterAdapter(request, metadata=client.metadata)
        first = tiny.oracle.greedy(PROMPT, tiny.source(0), 8)
        assert (await client.generate("acme/a0", PROMPT, max_tokens=8)).token_ids == first
        service.upload(tiny.source(0, revision=2), "adapters", "acme/a0")
        assert (await client.generate("acme/a0", PROMPT, max_tokens=8)).token_ids == first
        publish = registry.PublishRevisionRequest(tenant="acme", name="a0")
        await client.registry.PublishRevision(publish, metadata=client.metadata)
        second = tiny.oracle.greedy(PROMPT, tiny.source(0, revision=2), 8)
        assert (await client.generate("acme/a0", PROMPT, max_tokens=8)).token_ids == second
        assert first != second
