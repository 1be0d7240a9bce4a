"""Our two ways to serve a workload, and the Protocol that peers implement too."""

import asyncio
import time
from collections.abc import Sequence
from typing import Protocol

from data_plane.adapters.revision import AdapterSource
from data_plane.config import EngineConfig
from data_plane.engine.assemble import build_engine
from data_plane.engine.events import Delta, Failed, Finished, GenerationRequest
from data_plane.engine.runtime import build_runtime
from data_plane.scheduler.sampling import SamplingParams
from protos.registry.v1 import registry_pb2 as registry
from tests.benchmarks.run import Arrivals, Run
from tests.benchmarks.workload import Stream, Workload
from tests.integration.stack import Client, Stack
from tests.oracle import MODEL_DIR


class System(Protocol):
    """Something that generates a workload."""

    def run(self, workload: Workload) -> Run:
        """Generate all streams at once."""


class WholeStack:
    """Client → control plane → worker, over gRPC, in processes of their own."""

    def __init__(self, stack: Stack, adapters: Sequence[AdapterSource] = ()) -> None:
        self._stack = stack
        asyncio.run(self._register(adapters))

    def run(self, workload: Workload) -> Run:
        """Stream everything through the control plane."""
        return asyncio.run(self._generate(workload))

    async def _register(self, adapters: Sequence[AdapterSource]) -> None:
        async with self._stack.client() as client:
            for adapter in adapters:
                request = registry.RegisterAdapterRequest(
                    tenant=adapter.revision.tenant, name=adapter.revision.name, source=adapter.uri
                )
                await client.registry.RegisterAdapter(request, metadata=client.metadata)

    async def _generate(self, workload: Workload) -> Run:
        async with self._stack.client() as client:
            began_s = time.monotonic()
            arrivals = await asyncio.gather(
                *(self._arrivals(client, stream, workload.num_tokens) for stream in workload.streams)
            )
        return Run(began_s, arrivals, workload.num_prompt_tokens)

    @staticmethod
    async def _arrivals(client: Client, stream: Stream, num_tokens: int) -> Arrivals:
        arrivals = []
        async for response in client.stream(stream.model, list(stream.prompt_ids), max_tokens=num_tokens):
            if response.HasField("delta"):
                arrivals.append((time.monotonic(), len(response.delta.token_ids)))
        return arrivals


class InProcess:
    """The engine alone, stepped by this process."""

    def __init__(self, **settings: object) -> None:
        config = EngineConfig(model=MODEL_DIR, **settings)
        self.runtime = build_runtime(config)
        self._engine = build_engine(self.runtime, config)
        self._count = 0

    def run(self, workload: Workload) -> Run:
        """Step until every stream has ended."""
        began_s = time.monotonic()
        arrivals: dict[str, list[tuple[float, int]]] = {}
        for stream in workload.streams:
            request = self._request(stream, workload.num_tokens)
            arrivals[request.request_id] = []
            self._engine.add(request)
        num_cached = 0
        while self._engine.has_work:
            events = self._engine.step()
            now_s = time.monotonic()
            for event in events:
                match event:
                    case Delta():
                        arrivals[event.request_id].append((now_s, len(event.token_ids)))
                    case Finished():
                        num_cached += event.cached_tokens
                    case Failed(error=error):
                        raise error
        return Run(began_s, list(arrivals.values()), workload.num_prompt_tokens, num_cached)

    def close(self) -> None:
        """End the engine's threads."""
        self._engine.close()

    def _request(self, stream: Stream, num_tokens: int) -> GenerationRequest:
        self._count += 1
        return GenerationRequest(
            request_id=str(self._count),
            prompt_ids=stream.prompt_ids,
            sampling=SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True),
            adapter=stream.adapter,
        )
