"""Churn: random requests, reloads, evictions, cancels and failures on a real engine of a tiny model.

Drives the engine a step at a time and keeps what each request was told; knows nothing of what the
answers should be. A request that was alive while its adapter was replaced at once mixes revisions
from some token on: `pure_tokens` says how many tokens are surely of the receipt's revision alone.
"""

import random
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import load_file, save_file

from data_plane.adapters.revision import AdapterSource, ReloadPolicy, Revision
from data_plane.adapters.types import AdapterReader, PackedAdapter
from data_plane.engine.engine import Engine
from data_plane.engine.events import (
    CommandDone,
    Delta,
    Event,
    Evict,
    Failed,
    Finished,
    GenerationRequest,
    Reload,
    Started,
)
from data_plane.errors import AdapterError, AdapterUnreadable, WorkerError
from data_plane.scheduler.sampling import SamplingParams
from tests.data_plane.world import sha256sum_digest

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MAX_LIVE = 48  # requests at once
MAX_TOKENS = 16
WAIT_S = 30.0  # for a load, before the test fails


@dataclass(frozen=True, slots=True)
class Name:
    """An adapter's name: its revisions, of which one is broken for ever."""

    good: tuple[AdapterSource, ...]
    broken: AdapterSource


def make_names(root: Path, seeds: list[Path], count: int) -> list[Name]:
    """Names whose revisions are PEFT adapters of the seeds' shapes, every one with other numbers."""
    names = []
    for number in range(count):
        name, seed = f"adapter{number:02d}", seeds[number % len(seeds)]
        good = tuple(
            _revision(name, revision, _vary(seed, root / name / str(revision), 7 * number + revision))
            for revision in (1, 2)
        )
        broken = _vary(seed, root / name / "broken", 0)
        (broken / WEIGHTS).write_bytes((broken / WEIGHTS).read_bytes()[:-64])
        names.append(Name(good, _revision(name, 3, broken)))
    return names


def _vary(seed: Path, directory: Path, offset: int) -> Path:
    directory.mkdir(parents=True)
    shutil.copy(seed / CONFIG, directory / CONFIG)
    tensors = {key: value.roll(offset) for key, value in load_file(seed / WEIGHTS).items()}
    save_file(tensors, directory / WEIGHTS)
    return directory


def _revision(name: str, number: int, directory: Path) -> AdapterSource:
    return AdapterSource(Revision("acme", name, number, sha256sum_digest(directory)), str(directory))


class FlakyReader:
    """A source that is slow or fails at random. Called on one loader thread."""

    def __init__(self, reader: AdapterReader, rng: random.Random) -> None:
        self._reader = reader
        self._rng = rng

    def read(self, source: AdapterSource) -> PackedAdapter:
        """See `AdapterReader`."""
        dice = self._rng.random()
        if dice < 0.05:
            raise AdapterUnreadable(f"{source.uri}: connection reset")
        if dice < 0.2:
            threading.Event().wait(self._rng.uniform(0.002, 0.02))
        return self._reader.read(source)


@dataclass(slots=True)
class Told:
    """What a request asked and what it was told."""

    prompt: tuple[int, ...]
    max_tokens: int
    source: AdapterSource | None
    tokens: list[int] = field(default_factory=list)
    revision: Revision | None = None
    started: bool = False
    end: Finished | Failed | None = None
    pure_tokens: int = MAX_TOKENS
    may_be_cancelled: bool = False

    @property
    def name(self) -> str | None:
        """The adapter's name."""
        return None if self.source is None else self.source.revision.name


class Churn:
    """Requests and disturbances until enough requests have been sent and all have ended."""

    def __init__(
        self, engine: Engine, names: list[Name], prompts: list[tuple[int, ...]], rng: random.Random
    ) -> None:
        self._engine = engine
        self._names = names
        self._prompts = prompts
        self._rng = rng
        self._current = [0] * len(names)
        self._live: dict[str, Told] = {}
        self._reloads: list[tuple[int, int, Future[CommandDone]]] = []  # name, revision, outcome
        self._loaded = threading.Event()
        engine.on_loaded(self._loaded.set)
        self.told: list[Told] = []
        self.num_refused = 0  # before they began, by an adapter that just failed
        self.num_reloads = 0

    def run(self, num_requests: int) -> None:
        """Send so many requests, disturb them, and wait for the last."""
        while len(self.told) < num_requests:
            while len(self._live) < MAX_LIVE and self._rng.random() < 0.6:
                self._send()
            self._disturb()
            self._step()
        while self._engine.has_work:
            self._step()

    def empty(self) -> None:
        """Evict everything that is held."""
        held = [adapter.revision.digest for adapter in self._engine.status().adapters]
        evictions = [self._engine.command(Evict(digest)) for digest in held]
        while self._engine.has_work:
            self._step()
        for eviction in evictions:
            eviction.result(0)

    def _draw(self) -> int:
        # A few adapters get most requests, every one gets some.
        return min(int(self._rng.paretovariate(0.6)) - 1, 10**9) % len(self._names)

    def _send(self) -> None:
        dice, number = self._rng.random(), self._draw()
        name = self._names[number]
        source = None if dice < 0.1 else name.broken if dice < 0.13 else name.good[self._current[number]]
        told = Told(self._rng.choice(self._prompts), self._rng.randint(1, MAX_TOKENS), source)
        if source is not None and any(name == number for name, _, _ in self._reloads):
            told.pure_tokens = 0
        sampling = SamplingParams(temperature=0, max_tokens=told.max_tokens, ignore_eos=True)
        request_id = str(len(self.told))
        try:
            self._engine.add(
                GenerationRequest(
                    request_id=request_id,
                    prompt_ids=told.prompt,
                    sampling=sampling,
                    adapter=source,
                    tenant=self._rng.choice("abc"),
                )
            )
        except AdapterError as error:
            told.end = Failed(request_id=request_id, error=error)
            self.num_refused += 1
        else:
            self._live[request_id] = told
        self.told.append(told)

    def _disturb(self) -> None:
        dice, number = self._rng.random(), self._draw()
        if dice < 0.10:
            self._reload(number)
        elif dice < 0.16:
            source = self._names[number].good[self._current[number]]
            cancel = self._rng.random() < 0.3
            self._engine.command(Evict(source.revision.digest, cancel_running=cancel))
            if cancel:
                for told in self._of(source.revision.name):
                    told.may_be_cancelled = True
        elif dice < 0.24 and self._live:
            request_id = self._rng.choice(sorted(self._live))
            self._live[request_id].may_be_cancelled = True
            self._engine.cancel(request_id)

    def _reload(self, number: int) -> None:
        name, revision = self._names[number], self._rng.randrange(2)
        source = name.broken if self._rng.random() < 0.1 else name.good[revision]
        policy = self._rng.choice(list(ReloadPolicy))
        outcome = self._engine.command(Reload(source, policy))
        self.num_reloads += 1
        if policy is ReloadPolicy.IMMEDIATE:
            for told in self._of(source.revision.name):
                told.pure_tokens = min(told.pure_tokens, len(told.tokens))
            self._reloads.append((number, revision, outcome))
        else:
            outcome.add_done_callback(lambda done: self._publish(number, revision, done))

    def _publish(self, number: int, revision: int, outcome: "Future[CommandDone]") -> None:
        """Requests name the new revision once it is there; until then, and when it fails, the old."""
        if isinstance(error := outcome.exception(), WorkerError):
            return
        if error is not None:
            raise error
        self._current[number] = revision

    def _of(self, name: str) -> list[Told]:
        return [told for told in self._live.values() if told.name == name]

    def _step(self) -> None:
        self._loaded.clear()
        for event in self._engine.step():
            self._take(event)
        pending = []
        for number, revision, outcome in self._reloads:
            if outcome.done():
                self._publish(number, revision, outcome)
            else:
                pending.append((number, revision, outcome))
        self._reloads = pending
        if self._engine.has_work and not self._engine.computed_last_step and not self._loaded.wait(WAIT_S):
            raise TimeoutError(f"the engine waits for nothing: {self._engine.status()}")

    def _take(self, event: Event) -> None:
        told = self._live[event.request_id]
        match event:
            case Started(revision=revision):
                told.started, told.revision = True, revision
            case Delta(token_ids=tokens):
                told.tokens += tokens
            case Finished() | Failed():
                told.end = event
                del self._live[event.request_id]


def fast_clock(speed: float) -> Callable[[], float]:
    """The engine's clock, so fast that back-off of a failed source is soon over."""
    return lambda: time.monotonic() * speed
