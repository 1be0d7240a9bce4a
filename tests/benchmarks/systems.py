"""The systems that a benchmark compares, each behind `rate(workload) -> decode tokens a second`."""

import asyncio
import time
from pathlib import Path
from typing import Protocol

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, GenerationConfig, StoppingCriteria, StoppingCriteriaList

from data_plane.adapters.revision import AdapterSource, Revision
from data_plane.config import EngineConfig
from data_plane.engine.assemble import build_engine
from data_plane.engine.events import Delta, GenerationRequest
from data_plane.engine.runtime import build_runtime
from data_plane.scheduler.sampling import SamplingParams
from protos.registry.v1 import registry_pb2 as registry
from tests.benchmarks.workload import ADAPTERS, Arrivals, Workload, decode_rate
from tests.digests import digest_of
from tests.integration.stack import Client, Stack
from tests.oracle import ADAPTERS_DIR, MODEL_DIR


class System(Protocol):
    """Something that generates a workload."""

    def rate(self, workload: Workload) -> float:
        """Generate all streams at once; return decode tokens a second."""


class WholeStack:
    """Client → control plane → worker, over gRPC, in processes of their own."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        asyncio.run(self._register())

    def rate(self, workload: Workload) -> float:
        """Stream everything through the control plane."""
        return decode_rate(asyncio.run(self._generate(workload)))

    async def _register(self) -> None:
        async with self._stack.client() as client:
            for tenant, name in ADAPTERS:
                request = registry.RegisterAdapterRequest(
                    tenant=tenant, name=name, source=str(ADAPTERS_DIR / tenant / name)
                )
                await client.registry.RegisterAdapter(request, metadata=client.metadata)

    async def _generate(self, workload: Workload) -> list[Arrivals]:
        async with self._stack.client() as client:
            return await asyncio.gather(
                *(self._arrivals(client, stream, workload.num_tokens) for stream in workload.streams)
            )

    @staticmethod
    async def _arrivals(client: Client, stream, num_tokens: int) -> Arrivals:
        arrivals = []
        async for response in client.stream(stream.model, stream.prompt_ids, max_tokens=num_tokens):
            if response.HasField("delta"):
                arrivals.append((time.monotonic(), len(response.delta.token_ids)))
        return arrivals


class InProcess:
    """The engine alone, stepped by this process."""

    def __init__(self, **settings: object) -> None:
        config = EngineConfig(model=MODEL_DIR, adapter_roots=(ADAPTERS_DIR,), **settings)
        self._engine = build_engine(build_runtime(config), config)
        self._count = 0

    def rate(self, workload: Workload) -> float:
        """Step until every stream has ended."""
        arrivals: dict[str, list[tuple[float, int]]] = {}
        for stream in workload.streams:
            request = self._request(stream, workload.num_tokens)
            arrivals[request.request_id] = []
            self._engine.add(request)
        while self._engine.has_work:
            for event in self._engine.step():
                if isinstance(event, Delta):
                    arrivals[event.request_id].append((time.monotonic(), len(event.token_ids)))
        return decode_rate(list(arrivals.values()))

    def _request(self, stream, num_tokens: int) -> GenerationRequest:
        self._count += 1
        return GenerationRequest(
            request_id=str(self._count),
            prompt_ids=stream.prompt_ids,
            sampling=SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True),
            adapter=None if stream.adapter is None else _source(stream.directory, *stream.adapter),
        )


def _source(directory: Path, tenant: str, name: str) -> AdapterSource:
    revision = Revision(tenant=tenant, name=name, number=1, digest=digest_of(directory))
    return AdapterSource(revision=revision, uri=str(directory))


class Transformers:
    """`generate` of transformers on the base model, one static batch."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=dtype).eval()
        self._model.generation_config = GenerationConfig(pad_token_id=self._model.config.pad_token_id)

    def rate(self, workload: Workload) -> float:
        """Generate the batch, timing every step."""
        return _generate(self._model, workload)


class Peft:
    """PEFT with a different adapter in each row (`adapter_names`)."""

    def __init__(self, dtype: torch.dtype) -> None:
        base = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=dtype).eval()
        base.generation_config = GenerationConfig(pad_token_id=base.config.pad_token_id)
        first, *rest = ADAPTERS
        model = PeftModel.from_pretrained(base, ADAPTERS_DIR.joinpath(*first), adapter_name=first[1])
        for tenant, name in rest:
            model.load_adapter(ADAPTERS_DIR / tenant / name, adapter_name=name)
        self._model = model.eval()

    def rate(self, workload: Workload) -> float:
        """Generate the batch, timing every step."""
        names = ["__base__" if stream.adapter is None else stream.adapter[1] for stream in workload.streams]
        return _generate(self._model, workload, adapter_names=names)


class _Clock(StoppingCriteria):
    """Stops nothing; notes when each step ended."""

    def __init__(self, num_streams: int) -> None:
        self.arrivals: list[tuple[float, int]] = []
        self._num_streams = num_streams

    def __call__(self, input_ids: torch.Tensor, scores: object, **kwargs: object) -> torch.Tensor:
        self.arrivals.append((time.monotonic(), self._num_streams))
        return torch.zeros(len(input_ids), dtype=torch.bool)


def _generate(model, workload: Workload, **options: object) -> float:
    ids = torch.tensor([stream.prompt_ids for stream in workload.streams])
    clock = _Clock(len(workload.streams))
    with torch.inference_mode():
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=workload.num_tokens,
            do_sample=False,
            eos_token_id=None,
            stopping_criteria=StoppingCriteriaList([clock]),
            **options,
        )
    return decode_rate([clock.arrivals])
