"""Scheduler: which tokens of which requests the next step computes.

Owns who is admitted when, and the leases of those who are; knows nothing of tensors, text or threads.
A request is in exactly one place: among the waiting (`lanes`) or among the admitted.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from data_plane.adapters.lifecycle import AdapterManager
from data_plane.adapters.names import Owner, owner_of
from data_plane.adapters.revision import AdapterSource
from data_plane.kv_cache.tables import BlockTables
from data_plane.scheduler.admitted import AdmittedRequests
from data_plane.scheduler.batch import Batch, Planned
from data_plane.scheduler.fairness import VirtualCounters
from data_plane.scheduler.lanes import Lanes
from data_plane.scheduler.plan import SampledToken, StepPlan, StepResult
from data_plane.scheduler.request import Request, RequestState, Sequence
from data_plane.scheduler.turns import SlotTurns


@dataclass(frozen=True, slots=True)
class StepLimits:
    """Bounds of one step."""

    max_tokens: int
    max_sequences: int


class Scheduler:
    """Plans steps and takes in what they computed."""

    def __init__(
        self,
        *,
        tables: BlockTables,
        adapters: AdapterManager,
        lanes: Lanes,
        turns: SlotTurns,
        counters: VirtualCounters,
        limits: StepLimits,
        base_digest: str,
    ) -> None:
        self.lanes = lanes
        self.turns = turns
        self._admitted = AdmittedRequests(tables, max_sequences=limits.max_sequences, base_digest=base_digest)
        self._adapters = adapters
        self._counters = counters
        self._max_tokens = limits.max_tokens
        self._planned: list[Planned] = []
        self._admissions = 0
        self.max_adapters_in_step = 0

    @property
    def num_running(self) -> int:
        """Requests with blocks."""
        return len(self._admitted.running)

    @property
    def num_waiting(self) -> int:
        """Requests without blocks."""
        return len(self.lanes) + self._admitted.num_preempted

    def leasing(self, digest: str) -> list[Request]:
        """Requests that hold a lease on an adapter."""
        return [request for request in self._admitted.all if request.digest == digest]

    def add(self, request: Request) -> None:
        """Let a new request wait for its turn."""
        self._counters.join(request.tenant)
        self._wait(request)

    def end(self, request: Request) -> None:
        """The request has left the live states: free its place, blocks and lease."""
        self._counters.leave(request.tenant)
        if request in self.lanes:
            self.lanes.remove(request)
            return
        self._admitted.leave(request)
        self._unlease(request)

    def end_sequence(self, sequence: Sequence) -> None:
        """One of a running request's sequences has ended: free its blocks."""
        self._admitted.end_sequence(sequence)

    def schedule(self) -> StepPlan:
        """Plan the next step; empty when nobody can compute anything."""
        self.turns.advance(self._admitted.running)
        batch = Batch(self._max_tokens, self._admitted.num_decodes)
        self._admitted.plan_all(batch)
        self._admit(batch)
        self._planned = batch.planned()
        self._count_adapters()
        return batch.plan()

    def planned_requests(self) -> list[Request]:
        """Requests of the step that was planned last and is not complete."""
        return list(dict.fromkeys(request for request, _, _ in self._planned))

    def abandon(self) -> list[Request]:
        """The planned step could not be computed: its requests, which can't go on."""
        requests = self.planned_requests()
        self._planned = []
        return requests

    def complete(self, result: StepResult) -> list[tuple[Request, Sequence, SampledToken]]:
        """The planned step was computed: the tokens drawn, each appended to its sequence."""
        tokens = iter(result.tokens)
        drawn = []
        for request, sequence, num_tokens in self._planned:
            if self._admitted.computed(request, sequence, num_tokens):
                sampled = next(tokens)
                sequence.token_ids.append(sampled.token_id)
                self._counters.charge_output(request.tenant, 1)
                drawn.append((request, sequence, sampled))
        self._planned = []
        return drawn

    def retarget(self, old: str, source: AdapterSource, *, rebound: bool) -> None:
        """An adapter was replaced at once: its requests go on with the new revision.

        `rebound`: the slot they lease holds the new weights now. Otherwise they give back blocks and
        lease and wait for the new revision like new requests.
        """
        owner = owner_of(source.revision)
        for request in of_owner(self.lanes.requests(old), owner):
            self.lanes.remove(request)
            request.source = source
            self._wait(request)
        for request in of_owner(self.leasing(old), owner):
            if rebound:
                request.source = source
                self._admitted.seal(request)
            else:
                self._restart(request, source)
        if rebound:
            self.turns.admitted(source.revision.digest)

    def check(self) -> None:
        """Raise AssertionError unless blocks and leases are exactly those of the live requests."""
        self._admitted.check()
        held: dict[str, int] = {}
        for request in self._admitted.all:
            if request.digest is not None:
                held[request.digest] = held.get(request.digest, 0) + 1
        for digest in self._adapters.slots:
            leases = self._adapters.slots.leases(digest)
            assert leases == held.get(digest, 0), f"{digest}: {leases} leases, {held} in use"

    def _admit(self, batch: Batch) -> None:
        # Strictly in order: one that does not fit yet is not overtaken, or large ones would starve.
        while batch.prefill_left > 0:
            request = self._admitted.first_preempted or self._first_waiting()
            if request is None or not self._start(request):
                return
            self._admitted.plan(batch, request, joining=True)
            if request.state is not RequestState.RUNNING:
                return

    def _first_waiting(self) -> Request | None:
        return self.lanes.first((None, *self.turns.admissible())) if len(self.lanes) else None

    def _start(self, request: Request) -> bool:
        """Give a request its blocks and lease; False, and nothing changed, when it does not fit."""
        if not self._admitted.open(request):
            return False
        if request.state is RequestState.PREEMPTED:
            request.run(request.slot)
        else:
            self._admit_new(request, request.unfinished[0].num_computed)
        self._admitted.enter(request)
        return True

    def _admit_new(self, request: Request, num_cached: int) -> None:
        self.lanes.pop(request)
        slot = None
        if request.source is not None:
            slot = self._adapters.lease(request.source)
            assert slot is not None, "only requests for residents are admitted"
            self.turns.admitted(request.source.revision.digest)
        if request.state is RequestState.LOADING:
            request.adapter_arrived()
        request.run(slot)
        if request.admission < 0:
            request.admission = self._admissions
            request.cached_tokens = min(num_cached, len(request.prompt_ids))
            self._admissions += 1
            # At admission, as in the paper: charged later, one tenant would take every free place.
            self._counters.charge_prompt(request.tenant, len(request.prompt_ids) - request.cached_tokens)

    def _wait(self, request: Request) -> None:
        digest = request.digest
        if digest is not None:
            if digest not in self._adapters.slots and request.state is RequestState.WAITING:
                request.await_adapter()
            self.turns.enqueue(digest)
        self.lanes.add(request)

    def _unlease(self, request: Request) -> None:
        if request.digest is not None:
            self._adapters.release(request.digest)

    def _restart(self, request: Request, source: AdapterSource) -> None:
        if request.state is RequestState.RUNNING:
            self._admitted.preempt(request)
        self._admitted.leave(request)
        self._unlease(request)
        request.requeue()
        request.source = source
        self._wait(request)

    def _count_adapters(self) -> None:
        slots = {request.slot for request, _, _ in self._planned}
        slots.discard(None)
        self.max_adapters_in_step = max(self.max_adapters_in_step, len(slots))


def of_owner(requests: Iterable[Request], owner: Owner) -> list[Request]:
    """Those of the requests that are for an adapter of this owner."""
    return [
        request
        for request in requests
        if request.source is not None and owner_of(request.source.revision) == owner
    ]
