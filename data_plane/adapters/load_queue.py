"""Load queue: reads and copies of adapters on threads of their own, never on the step loop.

Owns its threads and the jobs that wait for them; knows nothing of what a job does. Urgent jobs
(a request waits) run before the others, each kind in order of arrival. Outcomes are collected
by the step loop with `take_done`; `on_done` is called from the job's thread, after the outcome is
there, so that a sleeping loop can be woken.
"""

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from threading import Condition, Thread
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """How a job ended: with a value, or with an error."""

    key: str
    value: T | None
    error: Exception | None


class LoadQueue(Protocol[T]):
    """Runs jobs somewhere else. Keys are unique among unfinished jobs."""

    def submit(self, key: str, work: Callable[[], T], *, urgent: bool) -> None:
        """Queue a job."""

    def hurry(self, key: str) -> None:
        """A request waits on this job now; no effect once it has begun."""

    def take_done(self) -> list[Outcome[T]]:
        """Outcomes since the last call."""

    def on_done(self, callback: Callable[[], None]) -> None:
        """Call this, from any thread, whenever an outcome is there."""

    def stop(self) -> None:
        """End the threads; waiting jobs are dropped, running ones finish."""


class ThreadLoadQueue(Generic[T]):
    """A LoadQueue on daemon threads, started by the first job."""

    def __init__(self, num_threads: int, *, name: str, prepare: Callable[[], object] = lambda: None) -> None:
        """`prepare` is called first on each thread."""
        self._prepare = prepare
        self._num_threads = num_threads
        self._name = name
        self._threads: list[Thread] = []
        self._changed = Condition()
        self._order = count()
        self._heap: list[tuple[bool, int, str]] = []
        self._jobs: dict[str, Callable[[], T]] = {}
        self._done: deque[Outcome[T]] = deque()
        self._callback: Callable[[], None] | None = None
        self._stopped = False

    def submit(self, key: str, work: Callable[[], T], *, urgent: bool) -> None:
        """See LoadQueue."""
        with self._changed:
            self._jobs[key] = work
            heapq.heappush(self._heap, (not urgent, next(self._order), key))
            if not self._threads:
                self._start()
            self._changed.notify()

    def hurry(self, key: str) -> None:
        """See LoadQueue."""
        with self._changed:
            if key in self._jobs:
                # The slower entry stays in the heap and is skipped, its job being gone by then.
                heapq.heappush(self._heap, (False, next(self._order), key))

    def take_done(self) -> list[Outcome[T]]:
        """See LoadQueue."""
        done: list[Outcome[T]] = []
        while self._done:
            done.append(self._done.popleft())
        return done

    def on_done(self, callback: Callable[[], None]) -> None:
        """See LoadQueue."""
        self._callback = callback

    def stop(self) -> None:
        """See LoadQueue."""
        with self._changed:
            self._stopped = True
            self._jobs.clear()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _start(self) -> None:
        for number in range(self._num_threads):
            thread = Thread(target=self._run, name=f"{self._name}-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _run(self) -> None:
        self._prepare()
        while (job := self._next()) is not None:
            key, work = job
            try:
                outcome: Outcome[T] = Outcome(key, work(), None)
            except Exception as error:  # the border between a job and its caller
                outcome = Outcome(key, None, error)
            self._done.append(outcome)
            if self._callback is not None:
                self._callback()

    def _next(self) -> tuple[str, Callable[[], T]] | None:
        with self._changed:
            while not self._stopped:
                while self._heap:
                    _, _, key = heapq.heappop(self._heap)
                    if key in self._jobs:
                        return key, self._jobs.pop(key)
                self._changed.wait()
            return None
