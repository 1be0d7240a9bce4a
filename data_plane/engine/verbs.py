"""Verbs: what each command does, as a generator that is resumed at every step boundary.

It yields while it waits (for a read, a copy, a lease) and returns the bytes it freed or used. Knows no
futures and no order of commands; a WorkerError that it raises is its answer and touches nothing else.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass, field

from data_plane.adapters.lifecycle import AdapterManager
from data_plane.adapters.names import Owner
from data_plane.adapters.residents import Place
from data_plane.adapters.revision import AdapterSource, Tier
from data_plane.engine.commands import Commands, Steps
from data_plane.engine.events import Command, Drain, Evict, Load, Pin, Reload
from data_plane.errors import AdapterUnknown, Overloaded, RequestCancelled, WorkerError
from data_plane.scheduler.request import Request
from data_plane.scheduler.scheduler import Scheduler, of_owner


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
