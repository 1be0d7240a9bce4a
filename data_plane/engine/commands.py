"""Commands: what the control plane asks of the engine, carried out a step boundary at a time.

Owns the commands under way; knows nothing of threads or gRPC, nor what a command does (`verbs`): a generator
that is resumed at every step boundary and returns the bytes it freed or used.
"""

from collections.abc import Callable, Generator
from concurrent.futures import Future
from dataclasses import dataclass

import structlog

from data_plane.engine.events import CommandDone
from data_plane.errors import WorkerError

_log = structlog.get_logger("data_plane.engine")

Steps = Generator[None, None, int]


@dataclass(frozen=True, slots=True)
class _Running:
    steps: Steps
    future: "Future[CommandDone] | None"  # None: the engine's own, nobody waits
    began_s: float


class Commands:
    """The commands under way, in order of arrival."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._running: list[_Running] = []
        self._retiring: set[str] = set()

    def __len__(self) -> int:
        return len(self._running)

    def start(self, steps: Steps, future: "Future[CommandDone] | None" = None) -> None:
        """Carry out a command from the next step boundary on; `future` gets its answer."""
        self._running.append(_Running(steps, future, self._clock()))

    def advance(self) -> None:
        """Let every command go on until all that are left wait for something outside."""
        # Again as long as one ends: another may wait for just that, and nobody would wake us.
        while sum([not self._resume(command) for command in self._take()]):
            pass

    def fail_all(self, error: WorkerError) -> None:
        """Refuse what is under way: the engine stops."""
        for command in self._take():
            self._refuse(command, error)

    def retire(self, digest: str, steps: Steps) -> None:
        """Start an eviction of the engine's own, once a digest."""
        if digest not in self._retiring:
            self._retiring.add(digest)
            self.start(self._retire(digest, steps))

    def keep(self, digest: str) -> None:
        """The digest is wanted again: give up retiring it."""
        self._retiring.discard(digest)

    def is_retiring(self, digest: str) -> bool:
        """Whether a digest leaves once nobody needs it."""
        return digest in self._retiring

    def _retire(self, digest: str, steps: Steps) -> Steps:
        try:
            for _ in steps:
                yield
                if digest not in self._retiring:
                    return 0
        finally:
            self._retiring.discard(digest)
        return 0

    def _take(self) -> list[_Running]:
        running, self._running = self._running, []
        return running

    def _resume(self, command: _Running) -> bool:
        """Whether the command goes on; it keeps its place among the others."""
        try:
            next(command.steps)
        except StopIteration as end:
            self._answer(command, end.value)
        except WorkerError as error:
            self._refuse(command, error)
        except Exception as error:  # a bug in one command must not end the step loop
            _log.exception("command failed")
            self._refuse(command, WorkerError(f"the command failed: {type(error).__name__}"))
        else:
            self._running.append(command)
            return True
        return False

    def _answer(self, command: _Running, size_bytes: int) -> None:
        if command.future is not None:
            elapsed_s = self._clock() - command.began_s
            command.future.set_result(CommandDone(elapsed_s=elapsed_s, size_bytes=size_bytes))

    def _refuse(self, command: _Running, error: WorkerError) -> None:
        if command.future is not None:
            command.future.set_exception(error)
