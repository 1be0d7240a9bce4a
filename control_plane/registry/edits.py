"""Edits: each change of an adapter as a pure function from the adapter to the adapter after it.

Knows nothing of Redis; the store commits a result only if nothing changed in between. An edit
that changes nothing returns an equal adapter.
"""

from collections.abc import Collection
from dataclasses import replace

from control_plane.errors import NotFound, StaleRevision
from control_plane.registry import traffic, traffic_edits
from control_plane.registry.types import (
    Adapter,
    NewAdapter,
    PinTier,
    ReloadPolicy,
    Revision,
    RevisionState,
)
from control_plane.resolvers.types import Resolved
from control_plane.texts import clipped

MAX_REVISIONS = 16  # kept per adapter; the oldest goes first, the current one never


def created(new: NewAdapter, resolved: Resolved, now_s: float) -> Adapter:
    """Return a new adapter with revision 1."""
    return _new(new, _revision(1, resolved, now_s), now_s)


def pending(new: NewAdapter, now_s: float) -> Adapter:
    """Return a new adapter whose source is being read."""
    revision = Revision(
        number=1,
        digest="",
        source=new.source,
        rank=0,
        target_modules=(),
        size_bytes=0,
        state=RevisionState.RESOLVING,
        created_s=now_s,
    )
    return _new(new, revision, now_s)


def read(pending: Adapter, resolved: Resolved, now_s: float) -> Adapter:
    """Return an adapter whose source was being read with what it is."""
    revision = _revision(pending.current_revision, resolved, now_s)
    return replace(pending, revisions=(revision,), created_s=now_s, updated_s=now_s)


def failed(adapter: Adapter, reason: str) -> Adapter:
    """Return an adapter that never was READY with the reason."""
    revision = replace(adapter.current, state=RevisionState.FAILED, failure=clipped(reason))
    return replace(adapter, revisions=(revision,))


def declares(stored: Adapter, pending: Adapter) -> bool:
    """Whether what is stored is this very registration, still being read (and maybe pinned since)."""
    return stored.key == pending.key and stored.current == pending.current


def _new(new: NewAdapter, revision: Revision, now_s: float) -> Adapter:
    return Adapter(
        key=new.key,
        base_model=new.base_model,
        revisions=(revision,),
        current_revision=1,
        generation=0,
        resource_version=0,
        aliases=tuple(sorted(set(new.aliases))),
        labels=dict(new.labels),
        shared_with=tuple(sorted(set(new.shared_with))),
        reload_policy=new.reload_policy,
        created_s=now_s,
        updated_s=now_s,
    )


def repeats(stored: Adapter, fresh: Adapter) -> bool:
    """Whether registering `fresh` only repeats what made `stored`, even if it was published to since."""
    declared = replace(
        fresh,
        revisions=stored.revisions,
        current_revision=stored.current_revision,
        generation=stored.generation,
        resource_version=stored.resource_version,
        traffic=stored.traffic,
        canary=stored.canary,
        decisions=stored.decisions,
        pin=stored.pin,
        created_s=stored.created_s,
        updated_s=stored.updated_s,
    )
    return declared == stored and any(fresh.current.digest == kept.digest for kept in stored.revisions)


def published(
    adapter: Adapter,
    resolved: Resolved,
    expected_revision: int | None,
    policy: ReloadPolicy | None,
    now_s: float,
    *,
    keep_current: bool = False,
) -> Adapter:
    """Return it with the weights as its current revision.

    The digest is what they are: the current weights again make no revision, wherever they were read;
    when that is another place, the revision is read from there from now on. All traffic goes to a new
    revision. With `keep_current` it is only added, and weights that are kept already are none.
    """
    check_expected(adapter, expected_revision)
    adapter = replace(adapter, reload_policy=policy or adapter.reload_policy)
    if not adapter.current.ready:  # the first weights that can be served
        number = adapter.current_revision + 1
        return replace(
            adapter, revisions=(_revision(number, resolved, now_s),), current_revision=number, traffic=()
        )
    revision = _revision(adapter.revisions[-1].number + 1, resolved, now_s)
    known = adapter.revisions if keep_current else (adapter.current,)
    if any(revision.digest == kept.digest for kept in known):
        return _moved(adapter, revision)
    if keep_current:
        return _with(adapter, revision)
    whole = traffic_edits.undivided(adapter, now_s, f"revision {revision.number} was published")
    return _with(replace(whole, current_revision=revision.number), revision)


def rolled_back(adapter: Adapter, number: int, expected_revision: int | None, now_s: float) -> Adapter:
    """Return it with an older revision current and all traffic on it; 0 is the one before the current."""
    check_expected(adapter, expected_revision)
    kept = [revision.number for revision in adapter.revisions]
    if not number:
        older = [candidate for candidate in kept if candidate < adapter.current_revision]
        if not older:
            raise NotFound("revision", f"{adapter.key}@{adapter.current_revision - 1}", "is not kept")
        number = older[-1]
    if number not in kept:
        raise NotFound("revision", f"{adapter.key}@{number}", f"is not kept (there are {kept})")
    whole = traffic_edits.undivided(adapter, now_s, f"rolled back to revision {number}")
    return replace(whole, current_revision=number)


def pinned(adapter: Adapter, tier: PinTier) -> Adapter:
    """Return it pinned in a tier; NONE takes the pin back."""
    return replace(adapter, pin=tier)


def shared(adapter: Adapter, tenants: Collection[str]) -> Adapter:
    """Return it shared with these tenants too."""
    return replace(adapter, shared_with=tuple(sorted({*adapter.shared_with, *tenants})))


def unshared(adapter: Adapter, tenants: Collection[str]) -> Adapter:
    """Return it shared with these tenants no more."""
    return replace(adapter, shared_with=tuple(one for one in adapter.shared_with if one not in tenants))


def deleting(adapter: Adapter, now_s: float) -> Adapter:
    """Return it as it waits for workers to hold it no longer: nobody's to use, by one name."""
    return replace(
        adapter,
        aliases=(),
        shared_with=(),
        traffic=(),
        canary=None,
        pin=PinTier.NONE,
        deleted_s=now_s,
    )


def check_expected(adapter: Adapter, expected_revision: int | None) -> None:
    """Raise StaleRevision unless the expected revision, if any, is the current one."""
    if expected_revision not in (None, adapter.current_revision):
        raise StaleRevision(
            "adapter",
            str(adapter.key),
            f"is at revision {adapter.current_revision}, not the expected {expected_revision}",
        )


def size_bytes(adapter: Adapter | None) -> int:
    """Bytes of the weight files of all kept revisions."""
    return sum(revision.size_bytes for revision in adapter.revisions) if adapter else 0


def _with(adapter: Adapter, revision: Revision) -> Adapter:
    """Return it with one more revision; the oldest that nobody is given goes when there are too many."""
    longer = replace(adapter, revisions=(*adapter.revisions, revision))
    needed = {one.number for one in (*traffic.served(longer), revision)}
    spare = [one for one in longer.revisions if one.number not in needed]
    dropped = spare[: max(0, len(longer.revisions) - MAX_REVISIONS)]
    return replace(longer, revisions=tuple(one for one in longer.revisions if one not in dropped))


def _revision(number: int, resolved: Resolved, now_s: float) -> Revision:
    return Revision(
        number=number,
        digest=resolved.digest,
        source=resolved.uri,
        rank=resolved.rank,
        target_modules=resolved.target_modules,
        size_bytes=resolved.size_bytes,
        created_s=now_s,
    )


def _moved(adapter: Adapter, to: Revision) -> Adapter:
    """Return it with the revisions of these weights read from another place."""
    # An older version of an object may be deleted once there is a newer one: the newest place is the
    # one that stays.
    revisions = [
        replace(one, source=to.source) if one.digest == to.digest else one for one in adapter.revisions
    ]
    return replace(adapter, revisions=tuple(revisions))
