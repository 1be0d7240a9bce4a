"""A tensor side without tensors, on which every mix-up of slots, blocks or revisions changes a token.

The simulated KV store keeps, for each place of each block, a hash chained over the digest that
computed it, its token and the place before it as read through the block table; the next token is a
hash of everything the table covers. Pages remember whose weights they hold, and a step that uses a
slot whose pages hold something else fails.
"""

import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from data_plane.adapters.load_queue import Outcome
from data_plane.adapters.revision import AdapterSource, Revision
from data_plane.config import EngineConfig
from data_plane.engine.assemble import EnginePolicy, LoadQueues, build_engine
from data_plane.engine.engine import Engine
from data_plane.engine.events import Delta, Event, Failed, Finished, GenerationRequest, Started
from data_plane.errors import WorkerError
from data_plane.scheduler.plan import Chunk, SampledToken, StepPlan, StepResult, TokenLogprob
from data_plane.scheduler.sampling import SamplingParams

EOS = 256
VOCAB = 257
BASE = "sha256:base"
PAGE_BYTES = 100
GREEDY = SamplingParams(temperature=0, max_tokens=8)


def byte_tokenizer() -> Tokenizer:
    """One token a byte, so that characters, and stop strings, cross token borders."""
    alphabet = sorted(ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens(["<eos>"])
    return tokenizer


def source(name: str, number: int = 1, tenant: str = "acme", digest: str | None = None) -> AdapterSource:
    digest = digest or f"sha256:{tenant}/{name}@{number}"
    return AdapterSource(Revision(tenant, name, number, digest), f"/adapters/{name}/{number}")


def mix(*parts: object) -> int:
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=6).digest(), "big")


def next_token(cells: list[int], seed: int, output_index: int, greedy: bool, allow_eos: bool) -> int:
    token = mix(cells, 0 if greedy else (seed, output_index)) % VOCAB
    return token if allow_eos or token != EOS else 0


def oracle(digest: str | None, prompt: tuple[int, ...], sampling: SamplingParams, seed: int = 0) -> list[int]:
    """What a request must answer, computed alone from its tokens."""
    cells: list[int] = []
    tokens = list(prompt)
    for index in range(sampling.max_tokens):
        for token in tokens[len(cells) :]:
            cells.append(mix(digest or BASE, token, cells[-1] if cells else None))
        token = next_token(cells, seed, index, sampling.greedy, index >= sampling.min_tokens)
        tokens.append(token)
        if token == EOS and not sampling.ignore_eos:
            break
    return tokens[len(prompt) :]


@dataclass
class FakePacked:
    digest: str
    rank: int = 8
    num_bytes: int = 1000

    @property
    def num_pages(self) -> int:
        return -(-self.rank // 8)


@dataclass
class FakeReader:
    """Reads by digest; what fails and what is large is set by the test."""

    failing: dict[str, Exception] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)
    reads: Counter[str] = field(default_factory=Counter)

    def read(self, source: AdapterSource) -> FakePacked:
        digest = source.revision.digest
        self.reads[digest] += 1
        if digest in self.failing:
            raise self.failing[digest]
        return FakePacked(digest, self.ranks.get(digest, 8))


class FakePool:
    """Whose weights each page holds, and which pages each slot computes."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self.page_bytes = PAGE_BYTES
        self.side_bytes = 0
        self.pages: dict[int, str] = {}
        self.slots: dict[int, tuple[str, tuple[int, ...]]] = {}

    def write(self, pages: tuple[int, ...], adapter: Any) -> Any:
        bound = {page for _, used in list(self.slots.values()) for page in used}
        if bound & set(pages):
            raise RuntimeError(f"pages {pages} are written while a slot computes them")
        for page in pages:
            self.pages[page] = adapter.digest
        return adapter

    def bind(self, slot: int, pages: tuple[int, ...], adapter: Any) -> None:
        self.slots[slot] = (adapter.digest, pages)

    def unbind(self, slot: int) -> None:
        del self.slots[slot]

    def side_bytes_of(self, pages: tuple[int, ...]) -> int:
        return 0

    def digest_in(self, slot: int) -> str:
        digest, pages = self.slots[slot]
        held = {self.pages[page] for page in pages}
        if held != {digest}:
            raise RuntimeError(f"slot {slot} is bound to {digest} but its pages hold {held}")
        return digest


class FakeRunner:
    """Computes plans over a simulated KV store."""

    def __init__(self, pool: FakePool, num_blocks: int, block_size: int, limits: tuple[int, int]) -> None:
        self.pool = pool
        self.block_size = block_size
        self.num_blocks = num_blocks
        self.max_tokens, self.max_sequences = limits
        self.cells: dict[tuple[int, int], int] = {}
        self.plans: list[StepPlan] = []
        self.fail_next: Exception | None = None

    def run(self, plan: StepPlan) -> StepResult:
        if self.fail_next is not None:
            error, self.fail_next = self.fail_next, None
            raise error
        assert plan.num_tokens <= self.max_tokens
        assert len(plan.chunks) <= self.max_sequences
        assert len({chunk.sequence_id for chunk in plan.chunks}) == len(plan.chunks)
        self.plans.append(plan)
        return StepResult(tuple(token for chunk in plan.chunks for token in self._compute(chunk)))

    def _compute(self, chunk: Chunk) -> list[SampledToken]:
        digest = BASE if chunk.slot is None else self.pool.digest_in(chunk.slot)
        for position, token in enumerate(chunk.token_ids, chunk.start):
            before = self.cells[self._place(chunk, position - 1)] if position else None
            self.cells[self._place(chunk, position)] = mix(digest, token, before)
        draw = chunk.draw
        if draw is None:
            return []
        end = chunk.start + len(chunk.token_ids)
        cells = [self.cells[self._place(chunk, position)] for position in range(end)]
        token = next_token(cells, draw.seed, draw.output_index, draw.sampling.greedy, draw.allow_eos)
        logprob = None if draw.sampling.logprobs is None else TokenLogprob(token, -0.5)
        return [SampledToken(chunk.sequence_id, token, logprob)]

    def _place(self, chunk: Chunk, position: int) -> tuple[int, int]:
        return chunk.block_table[position // self.block_size], position % self.block_size


class ManualQueue:
    """A LoadQueue that runs a job when the test says so."""

    def __init__(self, *, automatic: bool = False) -> None:
        self.automatic = automatic
        self.jobs: deque[tuple[str, Callable[[], Any]]] = deque()
        self.hurried: list[str] = []
        self.urgent: list[str] = []
        self.done: list[Outcome[Any]] = []

    def submit(self, key: str, work: Callable[[], Any], *, urgent: bool) -> None:
        self.jobs.append((key, work))
        if urgent:
            self.urgent.append(key)
        if self.automatic:
            self.run()

    def hurry(self, key: str) -> None:
        self.hurried.append(key)

    def run(self) -> None:
        """Run every job that waits."""
        while self.jobs:
            key, work = self.jobs.popleft()
            try:
                self.done.append(Outcome(key, work(), None))
            except Exception as error:
                self.done.append(Outcome(key, None, error))

    def take_done(self) -> list[Outcome[Any]]:
        done, self.done = self.done, []
        return done

    def on_done(self, callback: Callable[[], None]) -> None:
        pass

    def stop(self) -> None:
        self.jobs.clear()


class Clock:
    """Time that moves when the test says so, and by `tick_s` at every look."""

    def __init__(self, tick_s: float = 0.0) -> None:
        self.now = 100.0
        self._tick_s = tick_s

    def __call__(self) -> float:
        self.now += self._tick_s
        return self.now


@dataclass
class FakeTensors:
    runner: FakeRunner
    rank_pool: FakePool
    reader: FakeReader
    tokenizer: Tokenizer
    num_blocks: int
    block_size: int
    eos_token_ids: tuple[int, ...] = (EOS,)
    max_model_len: int = 64
    base_digest: str = BASE
    landed: FakeReader | None = None


class Bench:
    """An engine on the fake tensor side, and what it said, by request."""

    def __init__(
        self,
        *,
        num_blocks: int = 64,
        num_pages: int | None = None,
        automatic: bool = True,
        queues: LoadQueues | None = None,
        policy: EnginePolicy | None = None,
        clock: Callable[[], float] | None = None,
        max_model_len: int = 64,
        **config: Any,
    ) -> None:
        options = {
            "max_num_seqs": 8,
            "max_num_batched_tokens": 16,
            "block_size": 4,
            "max_loras": 2,
            "max_cpu_loras": 4,
            "max_lora_rank": 16,
            "cpu_cache_bytes": 100_000,
        }
        self.config = EngineConfig(model=Path("base"), **(options | config))
        self.clock = clock or Clock()
        self.reads, self.copies = ManualQueue(automatic=automatic), ManualQueue(automatic=automatic)
        self.reader = FakeReader()
        self.pool = FakePool(2 * self.config.max_loras + 2 if num_pages is None else num_pages)
        limits = (self.config.max_num_batched_tokens, self.config.max_num_seqs)
        self.runner = FakeRunner(self.pool, num_blocks, self.config.block_size, limits)
        self.engine: Engine = build_engine(
            FakeTensors(
                self.runner,
                self.pool,
                self.reader,
                byte_tokenizer(),
                num_blocks,
                self.config.block_size,
                max_model_len=max_model_len,
            ),
            self.config,
            policy=policy,
            queues=queues or LoadQueues(self.reads, self.copies),
            clock=self.clock,
            rng=random.Random(0),
        )
        self.events: dict[str, list[Event]] = {}
        self.num_steps = 0

    def add(
        self,
        request_id: str,
        prompt: tuple[int, ...] = (1, 2, 3),
        adapter: AdapterSource | None = None,
        sampling: SamplingParams = GREEDY,
        **options: Any,
    ) -> GenerationRequest:
        request = GenerationRequest(
            request_id=request_id, prompt_ids=prompt, sampling=sampling, adapter=adapter, **options
        )
        self.engine.add(request)
        return request

    def step(self, count: int = 1) -> list[Event]:
        events: list[Event] = []
        for _ in range(count):
            events += self.engine.step()
            self.num_steps += 1
            if self.engine.has_work and not self.engine.computed_last_step:
                # The thread sleeps now: without a load under way nobody would ever wake it.
                queues = (self.reads, self.copies)
                assert any(queue.jobs or queue.done for queue in queues), "the engine waits for nothing"
        for event in events:
            self.events.setdefault(event.request_id, []).append(event)
        return events

    def run(self, max_steps: int = 5000) -> None:
        """Step until nothing is left; fail when that takes too long."""
        for _ in range(max_steps):
            if not self.engine.has_work:
                return
            self.step()
        raise AssertionError(f"still at work after {max_steps} steps: {self.engine.status()}")

    def tokens(self, request_id: str, index: int = 0) -> list[int]:
        deltas = [e for e in self.events.get(request_id, []) if isinstance(e, Delta) and e.index == index]
        return [token for delta in deltas for token in delta.token_ids]

    def text(self, request_id: str, index: int = 0) -> str:
        deltas = [e for e in self.events.get(request_id, []) if isinstance(e, Delta) and e.index == index]
        return "".join(delta.text for delta in deltas)

    def started(self, request_id: str) -> Started:
        (started,) = [event for event in self.events[request_id] if isinstance(event, Started)]
        return started

    def finished(self, request_id: str) -> Finished:
        last = self.events[request_id][-1]
        assert isinstance(last, Finished), last
        return last

    def error(self, request_id: str) -> WorkerError:
        last = self.events[request_id][-1]
        assert isinstance(last, Failed), last
        return last.error

    def held(self) -> dict[str, Any]:
        return {held.revision.digest: held for held in self.engine.status().adapters}
