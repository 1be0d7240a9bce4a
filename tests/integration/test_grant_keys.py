"""Keys of grants rotate under traffic: nobody's request is refused, and what an old key signed dies."""

import asyncio
import time
import uuid

import grpc
import pytest

from control_plane.access.grant_keys import GrantKeys, Rotation
from control_plane.access.grants import Grant, GrantSigner
from control_plane.store.client import connect
from protos.inference.v1 import inference_pb2 as inference
from protos.inference.v1 import inference_pb2_grpc
from tests.integration.stack import Stack

pytestmark = pytest.mark.processes
LIFE_S = 6.0  # of a key; a worker's lease is 2 s
ROTATED = "grants are signed with another key"
MODEL, PROMPT = "tiny-llama", [1, 2, 3]


@pytest.fixture
def rotating(tiny, tmp_path):
    """Two control planes whose keys live for seconds, and a worker."""
    with Stack(
        tmp_path,
        model=tiny.model,
        adapter_roots=[tiny.adapters],
        control_plane={"grant_key_life_s": LIFE_S, "grant_ttl_s": 1},
        max_model_len=64,
        kv_cache_bytes=1 << 20,
        num_threads=1,
    ) as running:
        running.add_control_plane()
        running.await_serving("readiness", running.endpoints[1])
        yield running


async def forged(stack: Stack) -> GrantSigner:
    """A signer with the key that signs now, as one who once read Redis would have."""
    redis = connect(stack.valkey.url)
    keys = GrantKeys(redis, Rotation.every(LIFE_S, grant_ttl_s=1.0, worker_lease_s=2.0))
    await keys.refresh()
    await redis.aclose()
    key = keys.signing
    return GrantSigner(lambda: key)


def rotations(stack: Stack) -> list[int]:
    """How many each replica has seen."""
    return [process.log.count(ROTATED) for process in stack.control_planes]


async def at_worker(signer: GrantSigner, address: str) -> None:
    """Ask the worker itself, with a grant that lives for an hour."""
    grant = signer.sign(
        Grant(
            request_id=uuid.uuid4().hex,
            tenant="acme",
            worker_id="worker-0",
            base_model=MODEL,
            max_tokens=4,
            expires_in_s=3600.0,
        )
    )
    request = inference.GenerateRequest(
        model=MODEL,
        token_ids=inference.TokenIds(ids=PROMPT),
        sampling=inference.SamplingParams(max_tokens=2, temperature=0),
    )
    async with grpc.aio.insecure_channel(address) as channel:
        call = inference_pb2_grpc.InferenceStub(channel).Generate(
            request, metadata=(("loraplane-grant", grant),), timeout=20
        )
        async for _ in call:
            continue


async def test_no_request_notices_that_keys_rotate_and_old_grants_die(rotating) -> None:
    old, before = await forged(rotating), rotations(rotating)
    async with rotating.client(0) as first, rotating.client(1) as second:
        [worker] = await first.workers()
        await at_worker(old, worker.address)
        deadline, answers = time.monotonic() + 60, 0
        # After the second rotation from now on, as both replicas saw it, the key of `old` is gone.
        while min(rotations(rotating)) < max(before) + 2:
            assert time.monotonic() < deadline, "keys did not rotate"
            for answer in await asyncio.gather(
                *(client.generate(MODEL, PROMPT, max_tokens=2) for client in (first, second))
            ):
                assert len(answer.token_ids) == 2
                answers += 1
        assert answers > 20
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await at_worker(old, worker.address)
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert "a key this worker does not know" in (refused.value.details() or "")
