"""Holders: which workers should hold each adapter, kept up to date as either come and go.

Knows nothing of what is held or commanded. Invariant: between two calls, and when their iterators
have ended, the holders of an adapter are those that `plan.holders` names for it.

A change of an adapter ranks it alone. A worker that joins is compared with each adapter's weakest
holder, one that leaves is replaced for the adapters it held: both in chunks, so that an event loop
can do something else in between. What comes to it during such a pause is seen by the rest of them.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from heapq import nlargest
from itertools import islice

from control_plane.placement import rendezvous
from control_plane.placement.plan import fits
from control_plane.placement.rendezvous import Claim
from control_plane.registry.types import Adapter, AdapterKey, RevisionState
from control_plane.workers.types import Worker

# Between two pauses, a millisecond or two: scores, and adapters whose holders may change.
MAX_SCORES, MAX_ADAPTERS = 4096, 256

Pair = tuple[str, AdapterKey]  # a worker and an adapter
_Kind = tuple[str, int]  # base model and rank: what decides which workers are able


@dataclass(slots=True)
class _Placed:
    """An adapter's place in the order of things."""

    identity: int
    kind: _Kind
    claims: list[Claim] = field(default_factory=list)  # of its holders, the weakest first


class Holders:
    """Rendezvous hashing of all adapters over all workers that may become holders."""

    def __init__(self, num_holders: int) -> None:
        self._num_holders = num_holders
        self._workers: dict[str, Worker] = {}
        self._placed: dict[AdapterKey, _Placed] = {}
        self._keys: dict[str, set[AdapterKey]] = defaultdict(set)  # by holder
        self._able: dict[_Kind, list[str]] = {}
        self.num_scores = 0  # ever computed: what placing costs

    def of(self, key: AdapterKey) -> list[str]:
        """Return an adapter's holders, best first."""
        placed = self._placed.get(key)
        return [worker_id for _, worker_id in reversed(placed.claims)] if placed else []

    def holds(self, worker_id: str, key: AdapterKey) -> bool:
        """Whether a worker should hold an adapter."""
        return key in self._keys.get(worker_id, ())

    def keys(self, worker_id: str) -> Sequence[AdapterKey]:
        """Return the adapters that a worker should hold."""
        return tuple(self._keys.get(worker_id, ()))

    def put(self, adapter: Adapter, *, anew: bool = False) -> set[str]:
        """Take an adapter as it is now; return the workers that became or ceased to be its holders.

        Nothing is ranked when what ranking depends on is as before, unless it is to be done `anew`.
        """
        if adapter.current.state is not RevisionState.READY:
            return self.remove(adapter.key)
        kind = (adapter.base_model, adapter.current.rank)
        placed = self._placed.get(adapter.key)
        if placed is None:
            placed = self._placed[adapter.key] = _Placed(rendezvous.identity(str(adapter.key)), kind)
        elif placed.kind == kind and not anew:
            return set()
        placed.kind = kind
        return self._rank(adapter.key, placed)

    def remove(self, key: AdapterKey) -> set[str]:
        """Forget an adapter; return its holders."""
        placed = self._placed.pop(key, None)
        return self._hold(key, placed.claims, []) if placed else set()

    def join(self, worker: Worker) -> Iterator[list[Pair]]:
        """Take a worker that may become a holder; yield the pairs that come or go, chunk by chunk."""
        self._workers[worker.worker_id] = worker
        self._able.clear()
        identity, keys = rendezvous.identity(worker.worker_id), iter(tuple(self._placed))
        while chunk := tuple(islice(keys, MAX_ADAPTERS)):
            self.num_scores += len(chunk)
            changed = []
            for key in chunk:
                # Deleted in a pause, or ranked in one: with this worker, then.
                placed = self._placed.get(key)
                if placed is not None:
                    changed += self._compare(key, placed, worker, identity)
            yield changed

    def leave(self, worker_id: str) -> Iterator[list[Pair]]:
        """Forget a worker; yield the pairs that come or go, chunk by chunk."""
        if self._workers.pop(worker_id, None) is None:
            return
        self._able.clear()
        keys = iter(tuple(self._keys.get(worker_id, ())))
        size = min(MAX_ADAPTERS, MAX_SCORES // (len(self._workers) + 1) + 1)
        while chunk := tuple(islice(keys, size)):
            changed = []
            for key in chunk:
                placed = self._placed.get(key)
                if placed is not None:
                    changed += [(other, key) for other in self._rank(key, placed)]
            yield changed
        self._keys.pop(worker_id, None)

    def _compare(self, key: AdapterKey, placed: _Placed, worker: Worker, identity: int) -> list[Pair]:
        claims, claim = placed.claims, (rendezvous.mix(identity, placed.identity), worker.worker_id)
        full = len(claims) >= self._num_holders
        beaten = full and (not claims or claim <= claims[0])
        if beaten or claim in claims or not fits(worker, *placed.kind):
            return []
        after = [*claims[1:], claim] if full else [*claims, claim]
        return [(other, key) for other in self._replace(key, placed, sorted(after))]

    def _rank(self, key: AdapterKey, placed: _Placed) -> set[str]:
        able = self._able_for(placed.kind)
        self.num_scores += len(able)
        claims = nlargest(self._num_holders, rendezvous.claims(placed.identity, able))
        return self._replace(key, placed, claims[::-1])

    def _replace(self, key: AdapterKey, placed: _Placed, claims: list[Claim]) -> set[str]:
        before, placed.claims = placed.claims, claims
        return self._hold(key, before, claims)

    def _hold(self, key: AdapterKey, before: list[Claim], after: list[Claim]) -> set[str]:
        were, are = {worker_id for _, worker_id in before}, {worker_id for _, worker_id in after}
        for worker_id in were - are:
            self._keys[worker_id].discard(key)
        for worker_id in are - were:
            self._keys[worker_id].add(key)
        return were ^ are

    def _able_for(self, kind: _Kind) -> list[str]:
        able = self._able.get(kind)
        if able is None:
            able = self._able[kind] = [
                worker_id for worker_id, worker in self._workers.items() if fits(worker, *kind)
            ]
        return able
