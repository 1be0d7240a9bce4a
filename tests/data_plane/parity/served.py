"""One architecture behind a real engine: what it answers under an adapter, with every logit it drew from."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from data_plane.adapters.revision import AdapterSource
from data_plane.config import EngineConfig
from data_plane.engine.assemble import LoadQueues, build_engine
from data_plane.engine.events import Delta, Event, Failed, GenerationRequest
from data_plane.engine.runner import ModelRunner
from data_plane.engine.runtime import build_runtime
from data_plane.errors import WorkerError
from data_plane.scheduler.plan import StepPlan, StepResult
from data_plane.scheduler.sampling import SamplingParams
from tests.data_plane.fakes import ManualQueue
from tests.data_plane.parity.architectures import Architecture
from tests.data_plane.world import source_of

NUM_TOKENS = 8
# Longer than every window, and prefilled in several chunks beside the decodes of the base's request.
PROMPT_LENGTH, BASE_PROMPT_LENGTH = 23, 11
STEP_TOKENS = 9
NUM_SLOTS = 4
MAX_STEPS = 2000


@dataclass(frozen=True, slots=True)
class Answer:
    """Greedy tokens and the logits [len(tokens), vocab_size] that each was drawn from."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    logits: Tensor


class Served:
    """An engine on a random model of the architecture; it and its adapters are below `root`."""

    def __init__(self, architecture: Architecture, root: Path, *, max_model_len: int = 2048) -> None:
        self.architecture, self.root = architecture, root
        self.model = architecture.save(root / "base")
        config = EngineConfig(
            model=self.model,
            dtype="float32",
            max_model_len=max_model_len,
            block_size=4,
            kv_cache_bytes=1 << 20,
            max_num_seqs=8,
            max_num_batched_tokens=STEP_TOKENS,
            max_loras=NUM_SLOTS,
            max_lora_rank=16,
            adapter_roots=(root,),
            num_threads=1,
        )
        runtime = build_runtime(config)
        self._runner = _RecordingRunner(runtime.runner)
        queues = LoadQueues(ManualQueue(automatic=True), ManualQueue(automatic=True))
        self._engine = build_engine(replace(runtime, runner=self._runner), config, queues=queues)

    def answer(self, *adapters: Path) -> list[Answer | WorkerError]:
        """Answers of the base model and then of each adapter, computed together as far as slots allow."""
        self._runner.logits.clear()
        requests = [_request("base", BASE_PROMPT_LENGTH, None)]
        requests += [_request(path.name, PROMPT_LENGTH, source_of(path)) for path in adapters]
        for request in requests:
            self._engine.add(request)
        events = self._run()
        refused = {event.request_id: event.error for event in events if isinstance(event, Failed)}
        # Sequences are numbered as they were added; a refused one computes nothing.
        rows = iter(torch.stack(drawn) for _, drawn in sorted(self._runner.logits.items()))
        return [
            refused.get(request.request_id)
            or Answer(request.prompt_ids, _tokens(events, request.request_id), next(rows))
            for request in requests
        ]

    def _run(self) -> list[Event]:
        events: list[Event] = []
        for _ in range(MAX_STEPS):
            if not self._engine.has_work:
                return events
            events += self._engine.step()
        raise AssertionError(f"still at work after {MAX_STEPS} steps: {self._engine.status()}")


class _RecordingRunner:
    """Keeps the logits of every draw; computing a plan twice writes the same numbers to the same places."""

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self.logits: dict[int, list[Tensor]] = {}

    def run(self, plan: StepPlan) -> StepResult:
        rows = self._runner.logits(plan)
        result = self._runner.run(plan)
        for token, row in zip(result.tokens, rows, strict=True):
            self.logits.setdefault(token.sequence_id, []).append(row)
        return result


def _request(name: str, length: int, adapter: AdapterSource | None) -> GenerationRequest:
    prompt = torch.randint(1, 250, (length,), generator=torch.Generator().manual_seed(length))
    return GenerationRequest(
        request_id=name,
        prompt_ids=tuple(prompt.tolist()),
        sampling=SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True),
        adapter=adapter,
    )


def _tokens(events: list[Event], name: str) -> tuple[int, ...]:
    return tuple(
        token
        for event in events
        if isinstance(event, Delta) and event.request_id == name
        for token in event.token_ids
    )
