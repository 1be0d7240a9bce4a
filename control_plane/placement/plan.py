"""Desired − observed → commands: pure functions of the registry and of what workers report.

Desired is little, because requests themselves bring adapters to workers:

- a worker holds no adapter that was deleted (Evict);
- a worker that holds an adapter at an older revision, and not at the current one, gets the
  current one in its place (Reload with the adapter's policy);
- `num_holders` workers, by rendezvous hashing, are offered each adapter once for their CPU cache
  (Load), pinned and newest first, while their cache has room: a prefetch, never a reason to evict.
  Where traffic is split over revisions, each of them is offered;
- a pinned adapter is pinned on those workers and on no other (Pin).

Every command is given at most once a generation of its adapter and start of its worker; the
ledger (`control_plane.workers.ledger`) says which were. So an adapter that a worker's LRU displaced
or an operator evicted stays out until a request wants it or its generation changes: the planner
never fights either of them. It is also the hysteresis: a worker that comes back, or one that ranks
higher, is offered adapters, and nobody has to give any up for that.

`plan` derives everything at once; `placement.desired` derives the same, change by change.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from control_plane.placement import commands, rendezvous
from control_plane.placement.commands import Command
from control_plane.registry import traffic
from control_plane.registry.types import Adapter, AdapterKey, PinTier, Revision, RevisionState
from control_plane.workers.holdings import HeldAdapter
from control_plane.workers.types import Worker, WorkerState

Adapters = Mapping[AdapterKey, Adapter]
Held = Mapping[AdapterKey, Sequence[HeldAdapter]]
Rank = tuple[bool, int, AdapterKey]


@dataclass(frozen=True, slots=True)
class Room:
    """What a worker's CPU cache has free."""

    num_bytes: int
    places: float  # infinite: bounded by bytes alone


def plan(adapters: Adapters, workers: Sequence[Worker], *, version: int, num_holders: int) -> list[Command]:
    """Return every command that desired state asks for; the caller drops those already given.

    `version` is the registry's: it stands for the generation of adapters that no longer exist.
    """
    adapters = {key: adapter for key, adapter in adapters.items() if not adapter.deleting}
    placed = place(adapters.values(), workers, num_holders=num_holders)
    given: list[Command] = []
    for worker in workers:
        if worker.live:
            given += _plan_worker(worker, adapters, placed.get(worker.worker_id, ()), version)
    return given


def _plan_worker(
    worker: Worker, adapters: Adapters, placed: Sequence[Adapter], version: int
) -> Iterator[Command]:
    held, keys = held_by_key(worker), {adapter.key for adapter in placed}
    yield from drains(worker)
    for key, copies in held.items():
        yield from corrections(worker, key, adapters.get(key), copies, version)
        yield from pins(worker, adapters.get(key), copies, placed=key in keys)
    left = room(worker)
    for adapter in placed:
        for revision in missing(adapter, held.get(adapter.key, ())):
            left = Room(left.num_bytes - revision.size_bytes, left.places - 1)
            if left.num_bytes < 0 or left.places < 0:
                return
            yield commands.load(worker.worker_id, adapter, revision)


def place(
    adapters: Iterable[Adapter], workers: Sequence[Worker], *, num_holders: int
) -> Mapping[str, Sequence[Adapter]]:
    """Return which adapters each worker is a holder of, the most wanted first."""
    placed: dict[str, list[Adapter]] = {}
    for adapter in sorted(adapters, key=rank):
        for worker_id in holders(adapter, workers, num_holders=num_holders):
            placed.setdefault(worker_id, []).append(adapter)
    return placed


def holders(adapter: Adapter, workers: Iterable[Worker], *, num_holders: int) -> Sequence[str]:
    """Return the workers that should hold an adapter, best first."""
    if adapter.deleting or adapter.current.state is not RevisionState.READY:
        return ()
    able = (worker.worker_id for worker in workers if fits(worker, adapter.base_model, adapter.current.rank))
    return rendezvous.best(str(adapter.key), able, num_holders)


def fits(worker: Worker, base_model: str, max_rank: int) -> bool:
    """Whether a worker may become a holder of adapters of this model (empty: any) and rank."""
    return (
        worker.state is WorkerState.READY
        and base_model in ("", worker.base_model)
        and max_rank <= worker.capacity.max_lora_rank
    )


def rank(adapter: Adapter) -> Rank:
    """Return a key that sorts the most wanted adapter first: pinned, then newest."""
    return (adapter.pin is PinTier.NONE, -adapter.resource_version, adapter.key)


def held_by_key(worker: Worker) -> Held:
    """Return what a worker holds of each adapter."""
    return worker.status.holdings.by_key


def room(worker: Worker) -> Room:
    """Return what is free in a worker's CPU cache; negative when it is over its bound."""
    limit = worker.capacity.max_cpu_loras
    places = limit - len(worker.status.adapters) if limit else math.inf
    return Room(worker.capacity.cpu_bytes - worker.status.cpu_bytes_used, places)


def drains(worker: Worker) -> Iterator[Command]:
    """A draining worker is told so."""
    if worker.state is WorkerState.DRAINING:
        yield Command(worker.worker_id, 0, commands.Drain())


def corrections(
    worker: Worker, key: AdapterKey, adapter: Adapter | None, held: Iterable[HeldAdapter], version: int
) -> Iterator[Command]:
    """What a worker holds of an adapter, and should not."""
    if adapter is None:
        for one in held:
            yield Command(worker.worker_id, version, commands.Evict(key, one.digest))
        return
    digests = _digests(held)
    # With the current revision there too, the old one only serves what still runs or names it.
    if adapter.current.digest not in digests:
        served = _served_digests(adapter)
        stale = next((one.digest for one in held if one.digest not in served), None)
        if stale is not None:
            yield commands.reload(worker.worker_id, adapter, replaces_digest=stale)


def pins(
    worker: Worker, adapter: Adapter | None, held: Iterable[HeldAdapter], *, placed: bool
) -> Iterator[Command]:
    """The pin of the current revision, where the worker holds it: set on holders, else taken back."""
    for one in held:
        if adapter is None or one.digest != adapter.current.digest:
            continue
        if adapter.pin is not PinTier.NONE and placed:
            yield commands.pin(worker.worker_id, adapter)
        elif one.pinned:
            action = commands.Pin(adapter.key, one.digest, PinTier.NONE)
            yield Command(worker.worker_id, adapter.generation, action)


def missing(adapter: Adapter, held: Iterable[HeldAdapter]) -> list[Revision]:
    """Return the revisions that a holder should be offered, the current one first."""
    digests, served = _digests(held), _served_digests(adapter)
    # A worker that holds only stale revisions gets the current one in their place: Reload's business.
    reloads = bool(digests) and digests.isdisjoint(served)
    return [
        revision
        for revision in traffic.served(adapter)
        if revision.digest not in digests and not (reloads and revision is adapter.current)
    ]


def _digests(held: Iterable[HeldAdapter]) -> set[str]:
    return {one.digest for one in held}


def _served_digests(adapter: Adapter) -> set[str]:
    return {revision.digest for revision in traffic.served(adapter)}
