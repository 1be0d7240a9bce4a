"""Answers through the whole stack are PEFT's, whatever else is in the batch."""

import asyncio
import random

import pytest

from protos.inference.v1 import inference_pb2 as inference
from protos.registry.v1 import registry_pb2 as registry

pytestmark = pytest.mark.processes


async def register(client, tiny, number, tenant="acme"):
    request = registry.RegisterAdapterRequest(
        tenant=tenant, name=f"a{number}", source=str(tiny.source(number))
    )
    return await client.registry.RegisterAdapter(request, metadata=client.metadata)


async def test_mixed_requests_that_join_and_leave_answer_as_peft_does(stack, tiny):
    rng = random.Random(1)
    async with stack.client() as client:
        for number in range(3):
            await register(client, tiny, number)

        async def one(number: int | None) -> None:
            # Up to 150 tokens: more than two prefill chunks of 64.
            prompt = [rng.randrange(1, 250) for _ in range(rng.choice((3, 17, 64, 65, 150)))]
            await asyncio.sleep(rng.random() * 0.5)  # joins at any step
            num_tokens = rng.randrange(1, 24)
            model = "tiny-llama" if number is None else f"acme/a{number}"
            answer = await client.generate(model, prompt, max_tokens=num_tokens)
            directory = None if number is None else tiny.source(number)
            assert answer.token_ids == tiny.oracle.greedy(prompt, directory, num_tokens)
            assert answer.finished.usage.prompt_tokens == len(prompt)
            assert answer.finished.usage.completion_tokens == num_tokens

        await asyncio.gather(*(one(number) for number in [0, 1, 2, None] * 6))


async def test_the_receipt_names_adapter_revision_digest_and_tier(stack, tiny):
    async with stack.client() as client:
        adapter = await register(client, tiny, 0)
        answer = await client.generate("acme/a0", [5, 6], max_tokens=2)
        started = answer.started
        assert (started.adapter, started.revision) == ("a0", 1)
        assert started.digest == adapter.revisions[0].digest
        assert started.worker_id == "worker-0"
        again = await client.generate("acme/a0@1", [5, 6], max_tokens=2)
        assert again.started.tier == inference.TIER_SLOT
        base = await client.generate("tiny-llama", [5, 6], max_tokens=2)
        assert (base.started.adapter, base.started.tier) == ("", inference.TIER_UNSPECIFIED)
