"""Desired − observed → commands: a pure function of the registry and of what workers report.

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
never fights either of them.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from control_plane.placement import commands
from control_plane.placement.commands import Command
from control_plane.placement.rendezvous import ranked
from control_plane.registry import traffic
from control_plane.registry.types import Adapter, AdapterKey, PinTier, Revision, RevisionState
from control_plane.workers.types import HeldAdapter, Worker, WorkerState

Adapters = Mapping[AdapterKey, Adapter]
Placement = Mapping[str, Sequence[Adapter]]


def plan(adapters: Adapters, workers: Sequence[Worker], *, version: int, num_holders: int) -> list[Command]:
    """Return every command that desired state asks for; the caller drops those already given.

    `version` is the registry's: it stands for the generation of adapters that no longer exist.
    """
    placement = place(adapters.values(), workers, num_holders=num_holders)
    given: list[Command] = []
    for worker in workers:
        if worker.live:
            placed = placement.get(worker.worker_id, ())
            given += _drains(worker)
            given += _corrections(worker, adapters, version)
            given += _pins(worker, adapters, {adapter.key for adapter in placed})
            given += _offers(worker, placed)
    return given


def place(adapters: Iterable[Adapter], workers: Sequence[Worker], *, num_holders: int) -> Placement:
    """Return which adapters each ready worker is a holder of, the most wanted first."""
    ready = [worker for worker in workers if worker.state is WorkerState.READY]
    placement: dict[str, list[Adapter]] = {worker.worker_id: [] for worker in ready}
    # Who is able depends on model and rank alone: asking every worker about each of 10,000 adapters
    # took two thirds of the time.
    able: dict[tuple[str, int], tuple[str, ...]] = {}
    for adapter in sorted(adapters, key=_wanted, reverse=True):
        kind = (adapter.base_model, adapter.current.rank)
        if kind not in able:
            able[kind] = _able(adapter, ready)
        for worker_id in _best(adapter, able[kind], num_holders):
            placement[worker_id].append(adapter)
    return placement


def holders(adapter: Adapter, workers: Sequence[Worker], *, num_holders: int) -> Sequence[str]:
    """Return the workers that should hold an adapter, best first."""
    return _best(adapter, _able(adapter, workers), num_holders)


def _best(adapter: Adapter, able: tuple[str, ...], num_holders: int) -> Sequence[str]:
    if adapter.current.state is not RevisionState.READY:
        return ()
    return _ranked(str(adapter.key), able)[:num_holders]


def _able(adapter: Adapter, workers: Iterable[Worker]) -> tuple[str, ...]:
    return tuple(worker.worker_id for worker in workers if _fits(worker, adapter))


@lru_cache(maxsize=1 << 16)
def _ranked(key: str, worker_ids: tuple[str, ...]) -> tuple[str, ...]:
    # Hashing 2,000 adapters against 200 workers takes half a second; fleets change seldom.
    return tuple(ranked(key, worker_ids))


def _wanted(adapter: Adapter) -> tuple[bool, int]:
    return (adapter.pin is not PinTier.NONE, adapter.resource_version)


def _fits(worker: Worker, adapter: Adapter) -> bool:
    return (
        worker.state is WorkerState.READY
        and adapter.base_model in ("", worker.base_model)
        and adapter.current.rank <= worker.capacity.max_lora_rank
    )


def _drains(worker: Worker) -> Iterable[Command]:
    if worker.state is WorkerState.DRAINING:
        yield Command(worker.worker_id, 0, commands.Drain())


def _corrections(worker: Worker, adapters: Adapters, version: int) -> Iterable[Command]:
    stale: dict[AdapterKey, HeldAdapter] = {}
    for held in worker.status.adapters:
        adapter = adapters.get(held.key)
        if adapter is None:
            yield Command(worker.worker_id, version, commands.Evict(held.key, held.digest))
        elif held.digest not in _served_digests(adapter):
            stale.setdefault(held.key, held)
    for key, held in stale.items():
        # With the current revision there too, the old one only serves what still runs or names it.
        if adapters[key].current.digest not in worker.status.held:
            yield commands.reload(worker.worker_id, adapters[key], replaces_digest=held.digest)


def _served_digests(adapter: Adapter) -> set[str]:
    return {revision.digest for revision in traffic.served(adapter)}


def _pins(worker: Worker, adapters: Adapters, placed: set[AdapterKey]) -> Iterable[Command]:
    for held in worker.status.adapters:
        adapter = adapters.get(held.key)
        if adapter is None or held.digest != adapter.current.digest:
            continue
        if adapter.pin is not PinTier.NONE and adapter.key in placed:
            yield commands.pin(worker.worker_id, adapter)
        elif held.pinned:
            action = commands.Pin(adapter.key, held.digest, PinTier.NONE)
            yield Command(worker.worker_id, adapter.generation, action)


def _offers(worker: Worker, placed: Sequence[Adapter]) -> Iterable[Command]:
    free_bytes = worker.capacity.cpu_bytes - worker.status.cpu_bytes_used
    limit = worker.capacity.max_cpu_loras
    free_places = limit - len(worker.status.adapters) if limit else math.inf
    known: dict[AdapterKey, set[str]] = {}
    for held in worker.status.adapters:
        known.setdefault(held.key, set()).add(held.digest)
    for adapter in placed:
        for revision in _missing(adapter, known.get(adapter.key, set())):
            free_bytes -= revision.size_bytes
            free_places -= 1
            if free_bytes < 0 or free_places < 0:
                return
            yield commands.load(worker.worker_id, adapter, revision)


def _missing(adapter: Adapter, held: set[str]) -> Iterable[Revision]:
    for revision in traffic.served(adapter):
        # A worker that holds only stale revisions gets the current one in their place: Reload's business.
        reloads = revision is adapter.current and held and held.isdisjoint(_served_digests(adapter))
        if revision.digest not in held and not reloads:
            yield revision
