"""Commands: what the control plane asks of the engine, carried out a step boundary at a time.

Owns the commands under way; knows nothing of threads or gRPC. A command is a generator: it yields
while it waits (for a read, a copy, a lease), is resumed at every step boundary, and returns the
bytes it freed or used. A WorkerError raised in it is the command's answer and touches nothing else.
"""

from collections.abc import Callable, Generator
from concurrent.futures import Future
from dataclasses import dataclass, field

import structlog

from data_plane.adapters.lifecycle import AdapterManager
from data_plane.adapters.names import Owner
from data_plane.adapters.residents import Place
from data_plane.adapters.revision import AdapterSource, Tier
from data_plane.engine.events import Command, CommandDone, Drain, Evict, Load, Pin, Reload
from data_plane.errors import AdapterUnknown, Overloaded, RequestCancelled, WorkerError
from data_plane.scheduler.request import Request
from data_plane.scheduler.scheduler import Scheduler, of_owner

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


@dataclass(slots=True)
class CommandContext:
    """What commands act on."""

    adapters: AdapterManager
    scheduler: Scheduler
    commands: Commands
    end: Callable[[Request, WorkerError], None]
    drain: Callable[[], None]  # take no new requests
    has_requests: Callable[[], bool]
    failures: dict[str, WorkerError] = field(default_factory=dict)  # digests that failed since the last step
    reloading: set[Owner] = field(default_factory=set)
    pinning: set[str] = field(default_factory=set)  # digests that are pinned once they have a slot

    def size_bytes(self, digest: str) -> int:
        """Bytes of a revision over all tiers."""
        held = self.adapters.holdings
        return held.slot_bytes(digest) + held.cpu_bytes(digest)

    def raise_failure(self, digest: str) -> None:
        """Raise what went wrong with a digest since the last step."""
        if digest in self.failures:
            raise self.failures[digest]


def load(context: CommandContext, command: Load) -> Steps:
    """Have the revision in the CPU cache, or in a slot; a slot in use is not taken for it."""
    source, adapters = command.source, context.adapters
    digest = source.revision.digest
    context.commands.keep(digest)
    if not adapters.holds(digest):
        fetch = adapters.fetch(source, urgent=False)
        while not fetch.done:
            yield
        if fetch.error is not None:
            raise fetch.error
    adapters.names.add(source)
    if command.into_slot:
        yield from into_slot(context, source)
    return context.size_bytes(digest)


def into_slot(context: CommandContext, source: AdapterSource) -> Generator[None, None, None]:
    """Bring a revision into a slot that nobody uses; Overloaded when there is none."""
    while True:
        place = context.adapters.place(source, context.scheduler.turns.kept(), urgent=False)
        if place is Place.RESIDENT:
            return
        if place is Place.NO_ROOM:
            slots = context.adapters.slots.num_slots
            raise Overloaded(f"slots: all {slots} are leased, pinned or promised to waiting requests")
        yield
        context.raise_failure(source.revision.digest)


def evict(context: CommandContext, command: Evict) -> Steps:
    """Hold the revision no longer; meanwhile requests that name it wait, and load it again."""
    owner, names = command.owner, context.adapters.names
    if owner is not None and not names.is_only(command.digest, owner):
        return (yield from _leave_to_others(context, command, owner))
    context.pinning.discard(command.digest)
    if command.cancel_running:
        for request in context.scheduler.leasing(command.digest):
            context.end(request, RequestCancelled("the adapter was evicted"))
    while not _can_leave(context, command.digest):
        yield from _keep_waiting(context, command.digest)
    return context.adapters.evict(command.digest)


def _keep_waiting(context: CommandContext, digest: str) -> Generator[None, None, None]:
    """Until the next step boundary, let requests for a digest that is to leave wait."""
    if context.adapters.cache.is_held(digest):
        # A reload keeps it for its swap, and may itself wait for the last of these requests.
        yield
        return
    context.scheduler.turns.block(digest)
    try:
        yield
    finally:
        context.scheduler.turns.unblock(digest)


def _leave_to_others(context: CommandContext, command: Evict, owner: Owner) -> Steps:
    """Another owner has the same weights: only this one's requests end, and nothing is freed."""
    if command.cancel_running:
        for request in of_owner(context.scheduler.leasing(command.digest), owner):
            context.end(request, RequestCancelled("the adapter was evicted"))
    while of_owner(context.scheduler.leasing(command.digest), owner):
        yield
    context.adapters.names.remove(command.digest, owner)
    context.adapters.changed(command.digest)
    return 0


def retire(context: CommandContext, digest: str) -> Steps:
    """Hold a replaced revision until the last request that names it has ended."""
    while not _can_leave(context, digest) or context.scheduler.lanes.waits_for(digest):
        yield
    return context.adapters.evict(digest)


def pin(context: CommandContext, command: Pin) -> Steps:
    """Keep a held revision in a tier, bringing it there first."""
    adapters = context.adapters
    context.pinning.discard(command.digest)
    source = adapters.names.source(command.digest)
    if source is None or not adapters.holds(command.digest):
        raise AdapterUnknown(f"adapter {command.digest} is not held by this worker and cannot be pinned")
    if command.tier is Tier.SLOT:
        yield from into_slot(context, source)
    elif command.tier is Tier.CPU:
        fetch = adapters.fetch(source, urgent=False)
        while not fetch.done:
            yield
        if fetch.error is not None:
            raise fetch.error
    adapters.pin(command.digest, command.tier)
    return context.size_bytes(command.digest)


def pin_when_placed(context: CommandContext, source: AdapterSource) -> Steps:
    """Pin a cached revision in the first slot that it gets, unless that is no longer wanted."""
    adapters, digest = context.adapters, source.revision.digest
    context.pinning.add(digest)
    try:
        while digest in context.pinning:
            if adapters.place(source, context.scheduler.turns.kept(), urgent=False) is Place.RESIDENT:
                adapters.pin(digest, Tier.SLOT)
                break
            yield
            context.raise_failure(digest)
    finally:
        context.pinning.discard(digest)
    return 0


def drain(context: CommandContext) -> Steps:
    """Take no new requests and wait for those that are there."""
    context.drain()
    while context.has_requests():
        yield
    return 0


def steps_of(
    context: CommandContext, command: Command, reload: Callable[[CommandContext, Reload], Steps]
) -> Steps:
    """The generator that carries a command out."""
    match command:
        case Load():
            return load(context, command)
        case Evict():
            return evict(context, command)
        case Reload():
            return reload(context, command)
        case Pin():
            return pin(context, command)
        case Drain():
            return drain(context)


def _can_leave(context: CommandContext, digest: str) -> bool:
    adapters = context.adapters
    return not (adapters.slots.leases(digest) or adapters.is_moving(digest) or adapters.cache.is_held(digest))
