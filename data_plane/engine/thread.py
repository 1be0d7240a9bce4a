"""The engine's thread: the only one that drives the step loop.

Owns the thread, what was handed to it and is not taken in yet, and who listens to which request.
Other threads call `submit`, `cancel`, `command` and `status` and never touch the engine. The thread
sleeps on a condition when a step computed nothing, and is woken by a submit, a cancel, a command, a
load that ended or the next deadline; it never polls. It ends in `stop`, or dies of a bug: either way it
fails what is left first, and of a death it tells `on_death`, since nobody can be served any more.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Condition
from typing import Generic, TypeVar

import structlog

from data_plane.engine.engine import Engine
from data_plane.engine.events import (
    Command,
    CommandDone,
    EngineStatus,
    Event,
    Failed,
    Finished,
    GenerationRequest,
)
from data_plane.errors import Draining, WorkerError

_log = structlog.get_logger("data_plane.engine")

# Between two reports of mere load: at 50 ms they cost the control plane as much as relaying the tokens.
STATUS_INTERVAL_S = 0.25

SinkT = TypeVar("SinkT")
Deliver = Callable[[list[tuple[SinkT, Sequence[Event]]]], None]


@dataclass(frozen=True, slots=True)
class _Submit(Generic[SinkT]):
    request: GenerationRequest
    sink: SinkT


@dataclass(frozen=True, slots=True)
class _Cancel:
    request_id: str


@dataclass(frozen=True, slots=True)
class _Command:
    command: Command
    future: "Future[CommandDone]"


@dataclass(frozen=True, slots=True)
class _Snapshot:
    future: "Future[EngineStatus]"


_Message = _Submit[SinkT] | _Cancel | _Command | _Snapshot


class EngineThread(Generic[SinkT]):
    """Runs an engine; `deliver` gets the events of a step, by sink, in one call on the engine's thread."""

    def __init__(
        self,
        engine: Engine,
        deliver: Deliver[SinkT],
        *,
        clock: Callable[[], float] = time.monotonic,
        on_death: Callable[[], object] = lambda: None,
        executor: ThreadPoolExecutor | None = None,
    ) -> None:
        self._engine = engine
        self._deliver = deliver
        self._clock = clock
        self._on_death = on_death
        self._inbox: list[_Message[SinkT]] = []
        self._wanted = Condition()
        self._woken = False
        self._stopping = False
        self._sinks: dict[str, SinkT] = {}
        self._status = engine.status()
        self._status_s = clock()
        self._status_version = engine.adapters_version
        self._status_callback: Callable[[], object] | None = None
        self._executor = executor or ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._running: Future[None] | None = None
        engine.on_loaded(self._wake)

    def start(self) -> None:
        """Start the thread."""
        self._running = self._executor.submit(self._run)

    def submit(self, request: GenerationRequest, sink: SinkT) -> None:
        """Hand a request over; every event of it, a refusal (Failed) included, goes to `sink`."""
        self._post(_Submit(request, sink))

    def cancel(self, request_id: str) -> None:
        """End a request before the next step; no effect when it has ended."""
        self._post(_Cancel(request_id))

    def command(self, command: Command) -> "Future[CommandDone]":
        """Hand a command over; the future gets its outcome or a WorkerError."""
        future: Future[CommandDone] = Future()
        self._post(_Command(command, future))
        return future

    def status(self) -> EngineStatus:
        """The latest snapshot, at once."""
        return self._status

    def snapshot(self) -> "Future[EngineStatus]":
        """A snapshot after everything that this caller has handed over or got an answer to."""
        future: Future[EngineStatus] = Future()
        self._post(_Snapshot(future))
        return future

    def on_status(self, callback: Callable[[], object]) -> None:
        """Call this, on the engine's thread, after a snapshot that differs in adapters or leases,
        and at most every STATUS_INTERVAL_S after one that differs in load alone.
        """
        self._status_callback = callback

    def stop(self) -> None:
        """End the thread and every request that is left."""
        with self._wanted:
            self._stopping = True
            self._wanted.notify()
        if self._running is not None:
            self._running.result()
        self._executor.shutdown()
        self._engine.close()

    def _post(self, message: _Message[SinkT]) -> None:
        with self._wanted:
            if not self._stopping:
                self._inbox.append(message)
                self._wanted.notify()
                return
        self._refuse(message)

    def _wake(self) -> None:
        with self._wanted:
            self._woken = True
            self._wanted.notify()

    def _run(self) -> None:
        try:
            self._loop()
        except Exception:  # a bug: better every client hears of it than that they wait for ever
            _log.exception("the engine died")
            try:
                self._bury(WorkerError("the engine of this worker died"))
            finally:
                self._on_death()
        else:
            self._shut()

    def _loop(self) -> None:
        idle = False
        while (messages := self._take(idle=idle)) is not None:
            for message in messages:
                self._handle(message)
            self._send(self._engine.step())
            idle = not self._engine.computed_last_step
            self._report(idle=idle)
            if idle and not self._engine.has_work:
                self._check()

    def _take(self, *, idle: bool) -> list[_Message[SinkT]] | None:
        """What was handed over; when idle, wait for something to do. None when the thread ends."""
        with self._wanted:
            while idle and not (self._inbox or self._woken or self._stopping):
                deadline_s = self._engine.next_deadline_s
                left_s = None if deadline_s is None else deadline_s - self._clock()
                if left_s is not None and left_s <= 0:
                    break
                self._wanted.wait(left_s)
            if self._stopping:
                return None
            messages, self._inbox = self._inbox, []
            self._woken = False
            return messages

    def _handle(self, message: _Message[SinkT]) -> None:
        match message:
            case _Submit(request, sink):
                self._add(request, sink)
            case _Cancel(request_id):
                self._engine.cancel(request_id)
            case _Command(command, future):
                self._engine.start(command, future)
            case _Snapshot(future):
                future.set_result(self._engine.status())

    def _add(self, request: GenerationRequest, sink: SinkT) -> None:
        try:
            self._engine.add(request)
        except WorkerError as error:
            self._deliver([(sink, [Failed(request_id=request.request_id, error=error)])])
        else:
            self._sinks[request.request_id] = sink

    def _send(self, events: list[Event]) -> None:
        by_request: dict[str, list[Event]] = {}
        for event in events:
            by_request.setdefault(event.request_id, []).append(event)
        if not by_request:
            return
        self._deliver([(self._sinks[request_id], sent) for request_id, sent in by_request.items()])
        for event in events:
            if isinstance(event, Finished | Failed):
                del self._sinks[event.request_id]

    def _report(self, *, idle: bool) -> None:
        version, now = self._engine.adapters_version, self._clock()
        if version == self._status_version and not idle and now - self._status_s < STATUS_INTERVAL_S:
            return
        self._status, self._status_version, self._status_s = self._engine.status(), version, now
        if self._status_callback is not None:
            self._status_callback()

    def _check(self) -> None:
        try:
            self._engine.check()
        except AssertionError:
            _log.exception("the engine's books do not balance")

    def _shut(self) -> None:
        """Orderly: the engine ends its requests itself."""
        error = Draining("the worker has stopped")
        self._close_inbox()
        self._send(self._engine.fail_all(error))
        self._engine.fail_commands(error)

    def _bury(self, error: WorkerError) -> None:
        """After a bug: tell everybody who listens, without trusting the engine's books."""
        listening, self._sinks = self._sinks, {}
        self._engine.fail_commands(error)
        self._close_inbox()
        if listening:
            self._deliver(
                [
                    (sink, [Failed(request_id=request_id, error=error)])
                    for request_id, sink in listening.items()
                ]
            )

    def _close_inbox(self) -> None:
        with self._wanted:
            self._stopping = True
            messages, self._inbox = self._inbox, []
        for message in messages:
            self._refuse(message)

    def _refuse(self, message: _Message[SinkT]) -> None:
        error = Draining("the worker has stopped")
        match message:
            case _Submit(request, sink):
                self._deliver([(sink, [Failed(request_id=request.request_id, error=error)])])
            case _Command(_, future) | _Snapshot(future):
                future.set_exception(error)
