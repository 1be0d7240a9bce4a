"""Engine: the step loop. A step is three verbs: schedule, run, postprocess.

Owns every request from `add` to its last event; knows nothing of threads, gRPC or tensors. It is
driven by one thread. Whatever ends a request (its end, a failure, a cancel, a deadline) frees its
blocks and lease before the next step is planned, and only then says so.
"""

import heapq
import random
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import count
from typing import Protocol

import structlog

from data_plane.adapters.lifecycle import AdapterManager
from data_plane.adapters.revision import Tier
from data_plane.engine.admission import AdmissionLimits, admitted_len
from data_plane.engine.commands import CommandContext, Commands, steps_of
from data_plane.engine.detokenizer import MakeDetokenizer
from data_plane.engine.events import (
    Command,
    CommandDone,
    EngineStatus,
    Event,
    Failed,
    GenerationRequest,
    Started,
)
from data_plane.engine.outputs import RequestOutput
from data_plane.engine.reload import reload
from data_plane.engine.status import HeldAdapters
from data_plane.errors import (
    DeadlineExceeded,
    Draining,
    InvalidRequest,
    Overloaded,
    RequestCancelled,
    WorkerError,
)
from data_plane.kv_cache.tables import BlockTables
from data_plane.scheduler.plan import StepPlan, StepResult
from data_plane.scheduler.request import Request, Sequence
from data_plane.scheduler.scheduler import Scheduler

_log = structlog.get_logger("data_plane.engine")


class StepRunner(Protocol):
    """Computes steps."""

    def run(self, plan: StepPlan) -> StepResult:
        """One token for each chunk that draws, in the plan's order."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What the step loop itself must know."""

    limits: AdmissionLimits
    eos_token_ids: frozenset[int]
    max_waiting: int  # requests; more are refused


class Engine:
    """Requests and commands in, events out."""

    def __init__(
        self,
        *,
        runner: StepRunner,
        adapters: AdapterManager,
        tables: BlockTables,
        scheduler: Scheduler,
        make_detokenizer: MakeDetokenizer,
        settings: EngineSettings,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._runner = runner
        self._adapters = adapters
        self._tables = tables
        self._scheduler = scheduler
        self._make_detokenizer = make_detokenizer
        self._settings = settings
        self._clock = clock
        self._rng = rng or random.SystemRandom()
        self._held = HeldAdapters(adapters.holdings)
        self._orders = count()
        self._requests: dict[str, Request] = {}
        self._outputs: dict[str, RequestOutput] = {}
        self._deadlines: list[tuple[float, int, Request]] = []
        self._events: list[Event] = []
        self._commands = Commands(clock)
        self._context = CommandContext(
            adapters=adapters,
            scheduler=scheduler,
            commands=self._commands,
            end=self._fail,
            drain=self._drain,
            has_requests=lambda: bool(self._requests),
        )
        self._draining = False
        self._computed_tokens = 0
        self._steps = 0
        self.computed_last_step = False

    @property
    def has_work(self) -> bool:
        """Whether a request or command has not ended."""
        return bool(self._requests or self._commands)

    @property
    def next_deadline_s(self) -> float | None:
        """When the next request's time runs out, on the engine's clock."""
        while self._deadlines and not self._deadlines[0][2].live:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    @property
    def adapters_version(self) -> int:
        """Grows whenever a tier or a lease changes."""
        return self._adapters.version

    def on_loaded(self, callback: Callable[[], None]) -> None:
        """Call this, from any thread, when a load has ended and a step would take it in."""
        self._adapters.on_loaded(callback)

    def on_adapter_load(self, callback: Callable[[Tier, float], object]) -> None:
        """Call this, on the step loop, as a load of an adapter is taken in: tier it read, seconds."""
        self._adapters.on_load(callback)

    def close(self) -> None:
        """End the threads that load adapters."""
        self._adapters.stop()

    def add(self, generation: GenerationRequest) -> None:
        """Take a request; raise a WorkerError to refuse it."""
        max_len = self._admit(generation)
        order = next(self._orders)
        seed = generation.sampling.seed
        request = Request(
            request_id=generation.request_id,
            order=order,
            prompt_ids=generation.prompt_ids,
            sampling=generation.sampling,
            seed=self._rng.getrandbits(63) if seed is None else seed,
            max_len=max_len,
            arrival_s=self._clock(),
            source=generation.adapter,
            tenant=generation.tenant,
            priority=generation.priority,
            deadline_s=generation.deadline_s,
        )
        self._requests[request.id] = request
        self._outputs[request.id] = RequestOutput(
            request, self._make_detokenizer, self._settings.eos_token_ids
        )
        if request.deadline_s is not None:
            heapq.heappush(self._deadlines, (request.deadline_s, order, request))
        self._scheduler.add(request)

    def cancel(self, request_id: str) -> None:
        """End a request, in whatever state; no effect when it has ended."""
        request = self._requests.get(request_id)
        if request is not None:
            self._fail(request, RequestCancelled(f"request {request_id} was cancelled"))

    def command(self, command: Command) -> "Future[CommandDone]":
        """Carry out a command; the future gets its outcome or a WorkerError."""
        future: Future[CommandDone] = Future()
        self.start(command, future)
        return future

    def start(self, command: Command, future: "Future[CommandDone]") -> None:
        """The same with the caller's future."""
        future.set_running_or_notify_cancel()  # from here on it cannot be cancelled from outside
        self._commands.start(steps_of(self._context, command, reload), future)

    def step(self) -> list[Event]:
        """Schedule, run, postprocess one step; what there is to say, in order."""
        self._boundary()
        plan = self._scheduler.schedule()
        self.computed_last_step = bool(plan.chunks)
        if plan.chunks:
            self._announce()
            self._compute(plan)
        events, self._events = self._events, []
        return events

    def fail_commands(self, error: WorkerError) -> None:
        """Refuse every command under way: the engine stops."""
        self._commands.fail_all(error)

    def fail_all(self, error: WorkerError) -> list[Event]:
        """End every request: the engine stops."""
        for request in list(self._requests.values()):
            self._fail(request, error)
        events, self._events = self._events, []
        return events

    def status(self) -> EngineStatus:
        """What the engine holds and does now."""
        return EngineStatus(
            adapters=self._held.take(),
            taken_s=self._clock(),
            running_requests=self._scheduler.num_running,
            waiting_requests=self._scheduler.num_waiting,
            free_blocks=self._tables.num_free,
            slot_bytes_used=self._adapters.slot_bytes_used,
            cpu_bytes_used=self._adapters.cache.num_bytes,
            disk_bytes_used=self._adapters.disk_bytes_used,
            slot_evictions=self._adapters.slot_evictions,
            cpu_evictions=self._adapters.cpu_evictions,
            disk_evictions=self._adapters.disk_evictions,
            pool_fragmentation=self._adapters.slots.fragmentation,
            computed_tokens=self._computed_tokens,
            cold_loads=self._adapters.num_reads,
            max_adapters_in_step=self._scheduler.max_adapters_in_step,
            steps=self._steps,
        )

    def check(self) -> None:
        """Raise AssertionError unless every block, page, slot, lease and byte is accounted for."""
        self._scheduler.check()
        self._adapters.check()

    def _admit(self, generation: GenerationRequest) -> int:
        if self._draining:
            raise Draining("the worker finishes what it has and takes no new requests")
        if generation.request_id in self._requests:
            raise InvalidRequest("request_id", generation.request_id, "is in use")
        max_len = admitted_len(generation, self._settings.limits)
        if self._scheduler.num_waiting >= self._settings.max_waiting:
            raise Overloaded(f"{self._settings.max_waiting} requests wait already")
        if generation.adapter is not None:
            failure = self._adapters.recent_failure(generation.adapter.revision.digest)
            if failure is not None:
                raise failure
        return max_len

    def _boundary(self) -> None:
        """Between two steps: take in what other threads finished, and end what must end."""
        failures = dict(self._adapters.advance())
        for digest, error in failures.items():
            for request in self._scheduler.lanes.requests(digest):
                self._fail(request, error)
        self._expire()
        self._context.failures = failures
        self._commands.advance()

    def _expire(self) -> None:
        now = self._clock()
        while (deadline_s := self.next_deadline_s) is not None and deadline_s <= now:
            request = heapq.heappop(self._deadlines)[2]
            self._fail(request, DeadlineExceeded(f"request {request.id}: its deadline has passed"))

    def _announce(self) -> None:
        """Hand out the receipts of requests that compute their first tokens in this step."""
        for request in self._scheduler.planned_requests():
            if request.started:
                continue
            request.started = True
            tier, load_s = None, 0.0
            if request.digest is not None:
                tier, load_s = self._adapters.arrival(request.digest).seen_from(request.arrival_s)
            self._events.append(
                Started(
                    request_id=request.id,
                    revision=request.source.revision if request.source else None,
                    tier=tier,
                    load_s=load_s,
                    queue_s=self._clock() - request.arrival_s,
                )
            )

    def _compute(self, plan: StepPlan) -> None:
        try:
            result = self._runner.run(plan)
        except Exception:  # the border to the tensor side: what it raises concerns this step alone
            _log.exception("step failed", step=self._steps, num_tokens=plan.num_tokens)
            for request in self._scheduler.abandon():
                self._fail(request, WorkerError("the step that computed this request failed"))
            return
        self._steps += 1
        self._computed_tokens += plan.num_tokens
        for request, sequence, sampled in self._scheduler.complete(result):
            output = self._outputs[request.id]
            self._events.append(output.push(request, sequence, sampled))
            if output.has_ended(sequence):
                self._end_sequence(request, sequence, output)

    def _end_sequence(self, request: Request, sequence: Sequence, output: RequestOutput) -> None:
        self._scheduler.end_sequence(sequence)
        if output.complete:
            request.finish()
            self._forget(request)
            self._events.append(output.finished(request))

    def _fail(self, request: Request, error: WorkerError) -> None:
        if isinstance(error, RequestCancelled):
            request.cancel()
        else:
            request.fail()
        self._forget(request)
        self._events.append(Failed(request_id=request.id, error=error))

    def _forget(self, request: Request) -> None:
        self._scheduler.end(request)
        del self._requests[request.id], self._outputs[request.id]

    def _drain(self) -> None:
        self._draining = True
