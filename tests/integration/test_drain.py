"""A drained worker finishes, hands over, and ends by itself."""

import asyncio

import grpc
import pytest

from protos.fleet.v1 import fleet_pb2 as fleet
from tests.integration.test_generation import register

pytestmark = pytest.mark.processes


async def exit_code(process, timeout_s: float = 20.0) -> int:
    async with asyncio.timeout(timeout_s):
        return await asyncio.to_thread(process.wait)


async def test_a_drained_worker_finishes_hands_over_and_ends_with_0_and_its_successor_takes_requests(
    stack, tiny
):
    async with stack.client() as client:
        adapter = await register(client, tiny, 0)
        digest = adapter.revisions[0].digest
        await client.worker_until(
            lambda worker: any(held.digest == digest for held in worker.status.adapters)
        )
        running = client.stream("acme/a0", [1, 2, 3], max_tokens=200)
        answers = aiter(running)
        assert (await anext(answers)).WhichOneof("event") == "started"
        other = stack.add_worker()
        await client.worker_until(lambda worker: worker.worker_id == "worker-1", 60.0)

        await client.fleet.DrainWorker(
            fleet.DrainWorkerRequest(worker_id="worker-0"), metadata=client.metadata
        )
        events = [message async for message in answers]
        assert events[-1].WhichOneof("event") == "finished"
        assert await exit_code(stack.workers[0]) == 0
        heir = next(worker for worker in await client.workers() if worker.worker_id == "worker-1")
        assert digest in {held.digest for held in heir.status.adapters}
        assert (await client.generate("acme/a0", [1, 2, 3], max_tokens=4)).started.worker_id == "worker-1"

        stack.workers[0].start()
        again = await client.worker_until(
            lambda worker: worker.worker_id == "worker-0" and worker.state == fleet.WORKER_STATE_READY, 60.0
        )
        assert again.instance_id != heir.instance_id
        other.check_alive()


async def test_a_cordon_is_taken_back(stack, tiny):
    async with stack.client() as client:
        for undo in (False, True):
            await client.fleet.CordonWorker(
                fleet.CordonWorkerRequest(worker_id="worker-0", uncordon=undo), metadata=client.metadata
            )
            model = tiny.model.name
            if undo:
                assert (await client.generate(model, [1, 2, 3], max_tokens=2)).finished
            else:
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await client.generate(model, [1, 2, 3], max_tokens=2)
                assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
