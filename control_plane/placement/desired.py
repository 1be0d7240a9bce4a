"""Desired: what every worker should do about every adapter, kept up to date change by change.

Owns the present adapters, what each live worker holds, and the indexes between them. Knows no
Redis, no ledger and no clock: what was commanded already is its caller's to know. Invariant: after
any sequence of changes `commands` over `pairs` is what `plan.plan` derives from all of it at once.

A change answers with the pairs (worker, adapter) whose commands may be others now: the holders of a
changed adapter and the workers that hold it, or what differs in a worker's report. How many there
are does not depend on how many adapters there are.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from control_plane.placement import commands
from control_plane.placement.commands import Command
from control_plane.placement.holders import Holders, Pair
from control_plane.placement.offers import Offer, Offers
from control_plane.placement.plan import corrections, drains, held_by_key, missing, pins, rank, room
from control_plane.registry.types import Adapter, AdapterKey
from control_plane.workers.holdings import HeldAdapter
from control_plane.workers.types import Worker, WorkerState

DRAIN = commands.Drain.key  # stands for the worker itself
CHUNK = 256  # pairs between two pauses: about two milliseconds

_Held = dict[AdapterKey, Sequence[HeldAdapter]]


@dataclass(slots=True)
class _Seat:
    """A live worker as it last reported."""

    worker: Worker
    held: _Held = field(default_factory=dict)
    offers: Offers = field(default_factory=Offers)


class Desired:
    """Desired state minus observed state."""

    def __init__(self, num_holders: int) -> None:
        self._holders = Holders(num_holders)
        self._adapters: dict[AdapterKey, Adapter] = {}
        self._seats: dict[str, _Seat] = {}
        self._holding: dict[AdapterKey, set[str]] = {}  # which live workers hold something of it
        self._version = 0
        self.num_examined = 0  # pairs, ever: what planning costs beside placing

    @property
    def num_scores(self) -> int:
        """Scores computed for placing, ever."""
        return self._holders.num_scores

    def adapter(self, key: AdapterKey) -> Adapter | None:
        """Return an adapter as it is planned by."""
        return self._adapters.get(key)

    def adapters(self) -> Sequence[AdapterKey]:
        """Return every adapter."""
        return tuple(self._adapters)

    def is_ready(self, worker_id: str) -> bool:
        """Whether a worker is planned with as one that takes adapters."""
        seat = self._seats.get(worker_id)
        return seat is not None and seat.worker.state is WorkerState.READY

    def holders(self, key: AdapterKey) -> list[str]:
        """Return an adapter's holders, best first."""
        return self._holders.of(key)

    def put(self, adapter: Adapter, *, anew: bool = False) -> list[Pair]:
        """Take an adapter as it is now; one older than what is known changes nothing.

        One that is being deleted is as good as deleted: whoever holds it is told to let go.
        `anew` ranks its holders again and returns all of its pairs, whether anything seems changed or not.
        """
        if adapter.deleting:
            return self.remove(adapter.key, adapter.resource_version)
        known = self._adapters.get(adapter.key)
        if known is not None and not anew and known.resource_version >= adapter.resource_version:
            return []
        if known is not None and known.resource_version > adapter.resource_version:
            adapter = known
        self._adapters[adapter.key] = adapter
        self._version = max(self._version, adapter.resource_version)
        return self._examine_adapter(adapter.key, self._holders.put(adapter, anew=anew))

    def remove(self, key: AdapterKey, version: int) -> list[Pair]:
        """Forget an adapter that was deleted at this version, unless it was registered again since."""
        self._version = max(self._version, version)
        known = self._adapters.get(key)
        if known is None or known.resource_version > version:
            return []
        del self._adapters[key]
        return self._examine_adapter(key, self._holders.remove(key))

    def observe(self, worker: Worker, keys: Collection[AdapterKey] | None = None) -> Iterator[list[Pair]]:
        """Take a worker as it is now; yield changed pairs in chunks, between which others may act.

        With `keys` what it holds is as before but for these adapters. The next worker may be observed when
        this iterator has ended.
        """
        seat = self._seats.get(worker.worker_id)
        before = seat.worker if seat else None
        if not worker.live:
            yield from self._leave(worker.worker_id)
            return
        if seat is None:
            seat = self._seats[worker.worker_id] = _Seat(worker)
        seat.worker = worker
        yield from self._chunks(worker.worker_id, self._differences(seat, keys if before else None))
        if before is None or _role(before) != _role(worker):
            yield from self._examined(self._holders.leave(worker.worker_id))
            if worker.state is WorkerState.READY:
                yield from self._examined(self._holders.join(worker))
        if before is None or _session(before) != _session(worker):
            # Said hello again: what this session was not told yet is to be told.
            yield from self._chunks(worker.worker_id, [DRAIN, *self._keys(worker.worker_id)])

    def commands(self, worker_id: str, key: AdapterKey) -> list[Command]:
        """Return what a worker should be told about an adapter (or, as DRAIN, about itself)."""
        seat = self._seats.get(worker_id)
        if seat is None:
            return []
        if key == DRAIN:
            return list(drains(seat.worker))
        adapter, held = self._adapters.get(key), seat.held.get(key, ())
        given = [
            *corrections(seat.worker, key, adapter, held, self._version),
            *pins(seat.worker, adapter, held, placed=self._is_placed(seat, key)),
        ]
        if adapter is not None:
            numbers = seat.offers.granted(key)
            given += [commands.load(worker_id, adapter, adapter.revision(number)) for number in numbers]
        return given

    def pairs(self) -> Iterator[Pair]:
        """Yield every pair that there may be commands for."""
        for worker_id in tuple(self._seats):
            yield worker_id, DRAIN
            for key in self._keys(worker_id):
                yield worker_id, key

    def _differences(self, seat: _Seat, keys: Collection[AdapterKey] | None) -> list[AdapterKey]:
        """Take what a worker holds of some adapters (None: all); return those to be looked at."""
        now = held_by_key(seat.worker)
        looked_at = dict.fromkeys((*now, *seat.held)) if keys is None else keys
        return [key for key in looked_at if self._takes(seat, key, now.get(key, ()))]

    def _takes(self, seat: _Seat, key: AdapterKey, held: Sequence[HeldAdapter]) -> bool:
        before, worker_id = seat.held.pop(key, ()), seat.worker.worker_id
        if held:
            seat.held[key] = held
            self._holding.setdefault(key, set()).add(worker_id)
        elif before:
            self._let_go(worker_id, key)
        return _shape(before) != _shape(held)

    def _let_go(self, worker_id: str, key: AdapterKey) -> None:
        self._holding[key].discard(worker_id)
        if not self._holding[key]:
            del self._holding[key]

    def _leave(self, worker_id: str) -> Iterator[list[Pair]]:
        seat = self._seats.pop(worker_id, None)
        if seat is None:
            return
        for key in seat.held:
            self._let_go(worker_id, key)
        yield from self._examined(self._holders.leave(worker_id))

    def _examine_adapter(self, key: AdapterKey, moved: Iterable[str]) -> list[Pair]:
        worker_ids = {*moved, *self._holders.of(key), *self._holding.get(key, ())}
        return self._examine([(worker_id, key) for worker_id in worker_ids])

    def _examined(self, chunks: Iterable[list[Pair]]) -> Iterator[list[Pair]]:
        for chunk in chunks:
            yield self._examine(chunk)

    def _chunks(self, worker_id: str, keys: Sequence[AdapterKey]) -> Iterator[list[Pair]]:
        # At least once, because the room may have changed alone.
        for start in range(0, max(1, len(keys)), CHUNK):
            yield self._examine([(worker_id, key) for key in keys[start : start + CHUNK]], worker_id)

    def _examine(self, pairs: list[Pair], *settled: str) -> list[Pair]:
        """Bring the offers of these pairs up to date; return them and those whose grants moved."""
        self.num_examined += len(pairs)
        for worker_id, key in pairs:
            seat = self._seats.get(worker_id)
            if seat is not None and key != DRAIN:
                seat.offers.replace(key, self._offers(seat, key))
        touched = dict.fromkeys(pairs)
        for worker_id in {*settled, *(worker_id for worker_id, _ in pairs)}:
            seat = self._seats.get(worker_id)
            if seat is not None:
                touched |= dict.fromkeys((worker_id, key) for key in seat.offers.settle(room(seat.worker)))
        return list(touched)

    def _offers(self, seat: _Seat, key: AdapterKey) -> list[Offer]:
        adapter = self._adapters.get(key)
        if adapter is None or not self._is_placed(seat, key):
            return []
        order = rank(adapter)
        lacking = missing(adapter, seat.held.get(key, ()))
        return [
            Offer(order, place, revision.number, revision.size_bytes)
            for place, revision in enumerate(lacking)
        ]

    def _is_placed(self, seat: _Seat, key: AdapterKey) -> bool:
        # The state too: a worker that stops being ready is replaced adapter by adapter.
        return seat.worker.state is WorkerState.READY and self._holders.holds(seat.worker.worker_id, key)

    def _keys(self, worker_id: str) -> list[AdapterKey]:
        held = self._seats[worker_id].held
        return [*held, *(key for key in self._holders.keys(worker_id) if key not in held)]


def _role(worker: Worker) -> object:
    """What decides which adapters a worker may be a holder of."""
    return worker.state is WorkerState.READY, worker.base_model, worker.capacity.max_lora_rank


def _session(worker: Worker) -> object:
    return worker.instance_id, worker.session, worker.state is WorkerState.DRAINING


def _shape(held: Iterable[HeldAdapter]) -> object:
    """What planning reads of what is held."""
    return [(one.digest, one.pinned) for one in held]
