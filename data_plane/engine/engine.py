"""Engine: the step loop. A step is three verbs: schedule, run, postprocess.

Owns the order of things between two steps; knows nothing of threads, gRPC or tensors. It is driven
by one thread. Whatever ends a request (its end, a failure, a cancel, a deadline) frees its blocks and
lease before the next step is planned, and only then says so.
"""

import random
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

import structlog

from data_plane.adapters.lifecycle import AdapterManager
from data_plane.adapters.revision import Tier
from data_plane.engine.commands import Commands
from data_plane.engine.detokenizer import MakeDetokenizer
from data_plane.engine.events import Command, CommandDone, EngineStatus, Event, Failed, GenerationRequest
from data_plane.engine.intake import Intake, IntakeLimits
from data_plane.engine.live import LiveRequests
from data_plane.engine.outputs import RequestOutput
from data_plane.engine.receipts import receipt
from data_plane.engine.reload import reload
from data_plane.engine.status import StatusReporter
from data_plane.engine.verbs import CommandContext, steps_of
from data_plane.errors import DeadlineExceeded, InvalidRequest, RequestCancelled, WorkerError
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

    intake: IntakeLimits
    eos_token_ids: frozenset[int]


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
        self._scheduler = scheduler
        self._make_detokenizer = make_detokenizer
        self._settings = settings
        self._clock = clock
        self._intake = Intake(settings.intake, adapters, clock=clock, rng=rng or random.SystemRandom())
        self._live = LiveRequests()
        self._status = StatusReporter(adapters, scheduler, tables, clock)
        self._events: list[Event] = []
        self._commands = Commands(clock)
        self._context = CommandContext(
            adapters=adapters,
            scheduler=scheduler,
            commands=self._commands,
            end=self._fail,
            drain=self._intake.close,
            has_requests=lambda: len(self._live) > 0,
        )
        self.computed_last_step = False

    @property
    def has_work(self) -> bool:
        """Whether a request or command has not ended."""
        return len(self._live) > 0 or len(self._commands) > 0

    @property
    def next_deadline_s(self) -> float | None:
        """When the next request's time runs out, on the engine's clock."""
        return self._live.next_deadline_s

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
        if generation.request_id in self._live:
            raise InvalidRequest("request_id", generation.request_id, "is in use")
        request = self._intake.take(generation, num_waiting=self._scheduler.num_waiting)
        self._live.add(request, RequestOutput(request, self._make_detokenizer, self._settings.eos_token_ids))
        self._scheduler.add(request)

    def cancel(self, request_id: str) -> None:
        """End a request, in whatever state; no effect when it has ended."""
        request = self._live.get(request_id)
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
        for request in self._live:
            self._fail(request, error)
        events, self._events = self._events, []
        return events

    def status(self) -> EngineStatus:
        """What the engine holds and does now."""
        return self._status.take()

    def check(self) -> None:
        """Raise AssertionError unless every block, page, slot, lease and byte is accounted for."""
        self._scheduler.check()
        self._adapters.check()

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
        for request in self._live.expired(self._clock()):
            self._fail(request, DeadlineExceeded(f"request {request.id}: its deadline has passed"))

    def _announce(self) -> None:
        """Hand out the receipts of requests that compute their first tokens in this step."""
        for request in self._scheduler.planned_requests():
            if not request.started:
                request.started = True
                self._events.append(receipt(request, self._adapters, self._clock()))

    def _compute(self, plan: StepPlan) -> None:
        try:
            result = self._runner.run(plan)
        except Exception:  # the border to the tensor side: what it raises concerns this step alone
            _log.exception("step failed", step=self._status.num_steps, num_tokens=plan.num_tokens)
            for request in self._scheduler.abandon():
                self._fail(request, WorkerError("the step that computed this request failed"))
            return
        self._status.computed(plan.num_tokens)
        for request, sequence, sampled in self._scheduler.complete(result):
            output = self._live.output(request)
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
        self._live.remove(request)
