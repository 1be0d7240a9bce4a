"""Eight adapters on two slots under random reloads and evictions: no answer is ever mixed up."""

import asyncio
import random

import grpc
import pytest

from protos.registry.v1 import registry_pb2 as registry
from tests.integration.conftest import NUM_ADAPTERS
from tests.integration.test_generation import register

pytestmark = pytest.mark.processes
NUM_REQUESTS = 500
NUM_CLIENTS = 12
POLICIES = (registry.RELOAD_POLICY_FINISH_RUNNING, registry.RELOAD_POLICY_DRAIN)


async def test_every_answer_is_the_oracles_of_the_revision_on_its_receipt(stack, tiny):
    rng = random.Random(7)
    prompts = [[rng.randrange(1, 250) for _ in range(rng.randrange(1, 40))] for _ in range(6)]
    sources: dict[str, object] = {}
    stop = asyncio.Event()
    answers = []

    async with stack.client() as client:
        for number in range(NUM_ADAPTERS):
            adapter = await register(client, tiny, number)
            sources[adapter.revisions[0].digest] = tiny.source(number, 1)

        async def publish(number: int) -> None:
            revision = rng.choice((1, 2))
            adapter = await client.registry.PublishRevision(
                registry.PublishRevisionRequest(
                    tenant="acme",
                    name=f"a{number}",
                    source=str(tiny.source(number, revision)),
                    reload_policy=rng.choice(POLICIES),
                ),
                metadata=client.metadata,
            )
            current = next(r for r in adapter.revisions if r.number == adapter.current_revision)
            sources[current.digest] = tiny.source(number, revision)

        async def evict(number: int) -> None:
            request = registry.EvictAdapterRequest(tenant="acme", name=f"a{number}")
            await client.registry.EvictAdapter(request, metadata=client.metadata)

        async def disturb() -> None:
            while not stop.is_set():
                await rng.choice((publish, evict))(rng.randrange(NUM_ADAPTERS))
                await asyncio.sleep(rng.random() * 0.05)

        async def ask(count: int) -> None:
            for _ in range(count):
                number, prompt = rng.choice((*range(NUM_ADAPTERS), None)), rng.choice(prompts)
                model = "tiny-llama" if number is None else f"acme/a{number}"
                answers.append(
                    (number, prompt, await client.generate(model, prompt, max_tokens=rng.randrange(1, 8)))
                )

        disturber = asyncio.create_task(disturb())
        share = -(-NUM_REQUESTS // NUM_CLIENTS)
        await asyncio.gather(*(ask(share) for _ in range(NUM_CLIENTS)))
        stop.set()
        await disturber

        assert len(answers) >= NUM_REQUESTS
        for number, prompt, answer in answers:
            source = None if number is None else sources[answer.started.digest]
            if number is not None:
                assert source.name.startswith(f"a{number}-"), "another adapter's weights"
            assert answer.token_ids == tiny.oracle.greedy(prompt, source, len(answer.token_ids))

        idle = await client.worker_until(lambda worker: worker.status.running_requests == 0)
        assert idle.status.free_blocks == idle.capacity.num_blocks, "no block leaked"
        assert sum(adapter.leases for adapter in idle.status.adapters) == 0, "no lease leaked"


async def test_a_reload_of_a_broken_source_keeps_the_old_revision(stack, tiny):
    async with stack.client() as client:
        await register(client, tiny, 0)
        with pytest.raises(grpc.aio.AioRpcError):
            await client.registry.PublishRevision(
                registry.PublishRevisionRequest(tenant="acme", name="a0", source=str(tiny.adapters / "none")),
                metadata=client.metadata,
            )
        answer = await client.generate("acme/a0", [4, 2], max_tokens=6)
        assert answer.started.revision == 1
        assert answer.token_ids == tiny.oracle.greedy([4, 2], tiny.source(0), 6)
