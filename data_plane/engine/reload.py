"""Reload: other weights under the same name, by one of three policies.

The new revision is read, verified and packed first, exactly once; until then, and when it fails,
nothing changes. Then:

    IMMEDIATE       the copy goes into fresh pages; between two steps the slot of the old revision is
                    bound to them, and running requests go on with the new weights. What they compute
                    from there on mixes both, so none of it is offered to the prefix cache. Without
                    room for fresh pages, or when the old digest is shared with another name, the
                    requests compute again from their first token instead.
    FINISH_RUNNING  requests that named the old revision end on it; then it is evicted.
    DRAIN           so do they, and requests for the new one wait for them.
"""

from data_plane.adapters.names import owner_of
from data_plane.adapters.revision import AdapterSource, ReloadPolicy
from data_plane.engine.commands import Steps
from data_plane.engine.events import Reload
from data_plane.engine.verbs import CommandContext, pin_when_placed, retire
from data_plane.errors import Overloaded


def reload(context: CommandContext, command: Reload) -> Steps:
    """Replace every revision held under the name."""
    source, adapters = command.source, context.adapters
    digest, owner = source.revision.digest, owner_of(source.revision)
    context.commands.keep(digest)
    fetch = adapters.fetch(source, urgent=True, again=True)
    while not fetch.done:
        yield
    if fetch.error is not None:
        raise fetch.error
    if digest not in adapters.cache:  # evicted by what arrived in the same step
        raise Overloaded(f"the CPU cache has no room to keep {source.revision.name} for its swap")
    adapters.cache.hold(digest)  # read once: it must still be here when the swap comes
    try:
        while owner in context.reloading:  # one swap of a name at a time, in order of arrival
            yield
        context.reloading.add(owner)
        try:
            yield from _replace(context, command)
        finally:
            context.reloading.discard(owner)
    finally:
        adapters.cache.unhold(digest)
    return context.size_bytes(digest)


def _replace(context: CommandContext, command: Reload) -> Steps:
    adapters = context.adapters
    new, owner = command.source.revision.digest, owner_of(command.source.revision)
    for old in [digest for digest in adapters.names.digests(owner) if digest != new]:
        was_resident = old in adapters.slots
        if context.commands.is_retiring(old) and command.policy is not ReloadPolicy.DRAIN:
            continue  # its requests were promised to end on it
        if command.policy is ReloadPolicy.IMMEDIATE:
            yield from _swap(context, command, old)
        elif command.policy is ReloadPolicy.DRAIN:
            yield from _drain(context, old, new)
        only = adapters.names.is_only(old, owner)
        _inherit_pins(context, old, command.source, keep_old=not only)
        if only:
            context.commands.retire(old, retire(context, old))
        else:
            adapters.names.remove(old, owner)
        adapters.changed(old)
        if was_resident:
            # So that the next request finds it in a slot; when there is none, it waits as any other.
            adapters.place(command.source, context.scheduler.turns.kept(), urgent=False)
    return 0


def _swap(context: CommandContext, command: Reload, old: str) -> Steps:
    adapters, owner = context.adapters, owner_of(command.source.revision)
    new = command.source.revision.digest
    while adapters.is_moving(new):
        yield
    rebound = False
    if old in adapters.slots and new not in adapters.slots and adapters.names.is_only(old, owner):
        copy = adapters.stage(new, old, {old, *context.scheduler.turns.kept()})
        if copy is not None:
            while not copy.done:
                yield
            rebound = adapters.swap(old, copy)
            if copy.error is not None:
                raise copy.error
    context.scheduler.retarget(old, command.source, rebound=rebound)
    return 0


def _drain(context: CommandContext, old: str, new: str) -> Steps:
    scheduler = context.scheduler
    scheduler.turns.block(new)
    try:
        while context.adapters.slots.leases(old) or scheduler.lanes.waits_for(old):
            yield
    finally:
        scheduler.turns.unblock(new)
    return 0


def _inherit_pins(context: CommandContext, old: str, source: AdapterSource, *, keep_old: bool) -> None:
    """What was pinned under the name stays pinned, with the new weights."""
    slots, cache, new = context.adapters.slots, context.adapters.cache, source.revision.digest
    if cache.is_pinned(old):
        cache.pin(old, keep_old)
        cache.pin(new, True)
        context.adapters.changed(new)
    if slots.is_pinned(old) or old in context.pinning:
        context.pinning.discard(old)
        if old in slots:
            slots.pin(old, keep_old)
        context.commands.start(pin_when_placed(context, source))
