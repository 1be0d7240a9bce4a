"""The engine in this process, for notebooks and batch jobs.

    with LocalEngine(EngineConfig(model=..., adapter_roots=...)) as engine:
        engine.add_adapter("pirate", "adapters/pirate")
        print(engine.generate("The sea is", adapter="pirate")[0].choices[0].text)

Owns an engine thread and the names of its adapters; everything else is the worker's own code. Its
methods may be called from any thread, and block until what they asked for is done.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Self

from data_plane.adapters.names import owner_of
from data_plane.adapters.revision import AdapterSource, ReloadPolicy, Tier
from data_plane.config import EngineConfig
from data_plane.engine.assemble import build_engine
from data_plane.engine.events import (
    Command,
    CommandDone,
    Delta,
    EngineStatus,
    Event,
    Evict,
    Failed,
    Finished,
    FinishReason,
    GenerationRequest,
    HeldAdapter,
    Load,
    Logprobs,
    Pin,
    Reload,
    Started,
)
from data_plane.engine.local_source import local_source
from data_plane.engine.runtime import Runtime, build_runtime
from data_plane.engine.thread import EngineThread
from data_plane.errors import AdapterUnknown, InvalidRequest
from data_plane.scheduler.sampling import SamplingParams

TENANT = "local"
Prompts = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One of the `n` generations of a prompt."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[Logprobs, ...]
    reason: FinishReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What became of one prompt."""

    receipt: Started
    choices: tuple[Choice, ...]
    usage: Finished


class _Pending:
    """The events of one request, collected on the engine's thread; handed over after the last."""

    def __init__(self, index: int, done: "SimpleQueue[_Pending]") -> None:
        self.index = index
        self.events: list[Event] = []
        self._done = done

    def put(self, events: Sequence[Event]) -> None:
        self.events += events
        if isinstance(events[-1], Finished | Failed):
            self._done.put(self)


class LocalEngine:
    """A model, its adapters and the engine that serves them."""

    def __init__(self, config: EngineConfig, *, runtime: Runtime | None = None) -> None:
        # One thread loads the model and steps it; data_plane/openmp.py says why.
        executor = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._runtime = runtime or executor.submit(build_runtime, config).result()
        # Enough to keep every step full, few enough that a million prompts do not wait in memory.
        self._window = min(config.max_waiting_requests, 2 * config.max_num_seqs)
        self._thread: EngineThread[_Pending] = EngineThread(
            build_engine(self._runtime, config), _deliver, executor=executor
        )
        self._sources: dict[str, AdapterSource] = {}
        self._ids = count()
        self._thread.start()
        try:
            for module in config.lora_modules:
                self.add_adapter(module.name, module.path)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the engine's threads; what runs fails."""
        self._thread.stop()

    def generate(
        self,
        prompts: Prompts,
        sampling: SamplingParams | None = None,
        *,
        adapter: str | Sequence[str | None] | None = None,
        priority: int = 0,
    ) -> list[Generation]:
        """Generate for every prompt, in their order: text, texts, token ids or lists of them.

        `adapter` is for all prompts or one for each; None is the base model. The first failure ends
        what is left and is raised.
        """
        texts = self._token_ids(prompts)
        names = [adapter] * len(texts) if adapter is None or isinstance(adapter, str) else list(adapter)
        if len(names) != len(texts):
            raise InvalidRequest(
                "adapter", names, f"must be one name, or one for each of {len(texts)} prompts"
            )
        sources = [None if name is None else self._source(name) for name in names]
        requests = [
            GenerationRequest(
                request_id=f"local-{next(self._ids)}",
                prompt_ids=prompt_ids,
                sampling=sampling or SamplingParams(),
                adapter=source,
                tenant=TENANT,
                priority=priority,
            )
            for prompt_ids, source in zip(texts, sources, strict=True)
        ]
        return self._run(requests)

    def add_adapter(self, name: str, path: str | Path, *, load_inplace: bool = False) -> AdapterSource:
        """Load an adapter directory under a name, or with `load_inplace` new weights under an old one."""
        old = self._sources.get(name)
        if old is not None and not load_inplace:
            raise InvalidRequest("name", name, "is loaded already: set load_inplace to replace it")
        number = old.revision.number + 1 if old else 1
        source = local_source(self._runtime.reader, name, Path(path), tenant=TENANT, number=number)
        self._do(Reload(source, ReloadPolicy.FINISH_RUNNING) if old else Load(source))
        self._sources[name] = source
        return source

    def remove_adapter(self, name: str) -> int:
        """Unload an adapter once its requests have ended; the bytes that became free over both tiers."""
        revision = self._source(name).revision
        done = self._do(Evict(revision.digest, owner=owner_of(revision)))
        del self._sources[name]
        return done.size_bytes

    def pin_adapter(self, name: str, tier: Tier | None = Tier.SLOT) -> None:
        """Keep an adapter in a tier (SLOT or CPU); None takes the pin back."""
        self._do(Pin(self._source(name).revision.digest, tier))

    def list_adapters(self) -> dict[str, HeldAdapter | None]:
        """Every adapter by name, with where it is held; None: it was evicted and loads when it is used."""
        held = {adapter.revision.digest: adapter for adapter in self.status().adapters}
        return {name: held.get(source.revision.digest) for name, source in self._sources.items()}

    def status(self) -> EngineStatus:
        """What the engine holds and does."""
        return self._thread.snapshot().result()

    def _do(self, command: Command) -> CommandDone:
        return self._thread.command(command).result()

    def _source(self, name: str) -> AdapterSource:
        if name not in self._sources:
            raise AdapterUnknown(f"adapter {name} is not loaded: add it first")
        return self._sources[name]

    def _token_ids(self, prompts: Prompts) -> list[tuple[int, ...]]:
        many = [prompts] if _is_one(prompts) else prompts
        encode = self._runtime.tokenizer.encode
        return [tuple(encode(prompt) if isinstance(prompt, str) else prompt) for prompt in many]  # type: ignore[arg-type]

    def _run(self, requests: Iterable[GenerationRequest]) -> list[Generation]:
        done: SimpleQueue[_Pending] = SimpleQueue()
        waiting = deque(enumerate(requests))
        running: dict[int, str] = {}
        generations: dict[int, Generation] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self._window:
                    index, request = waiting.popleft()
                    running[index] = request.request_id
                    self._thread.submit(request, _Pending(index, done))
                ended = done.get()
                del running[ended.index]
                generations[ended.index] = _generation(ended.events)
        finally:
            for request_id in running.values():  # a failure, or an interrupt of the notebook
                self._thread.cancel(request_id)
        return [generations[index] for index in sorted(generations)]


def _is_one(prompts: Prompts) -> bool:
    return isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int))


def _generation(events: Sequence[Event]) -> Generation:
    last = events[-1]
    if isinstance(last, Failed):
        raise last.error
    assert isinstance(last, Finished), "the last event of a request ends it"
    (receipt,) = [event for event in events if isinstance(event, Started)]
    choices = []
    for finished in last.choices:
        deltas = [event for event in events if isinstance(event, Delta) and event.index == finished.index]
        choices.append(
            Choice(
                text="".join(delta.text for delta in deltas),
                token_ids=tuple(token for delta in deltas for token in delta.token_ids),
                logprobs=tuple(entry for delta in deltas for entry in delta.logprobs),
                reason=finished.reason,
            )
        )
    return Generation(receipt=receipt, choices=tuple(choices), usage=last)


def _deliver(deliveries: list[tuple[_Pending, Sequence[Event]]]) -> None:
    for pending, events in deliveries:
        pending.put(events)
