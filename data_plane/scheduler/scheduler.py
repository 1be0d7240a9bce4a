"""Scheduler: which tokens of which requests the next step computes.

Owns waiting, preempted and running requests, their blocks and leases; knows nothing of tensors,
text or threads. A request is in exactly one of the three places. Running requests are served in
the order of their admission; when blocks run out the youngest gives up its own and computes again
later, so the oldest always ends.
"""

from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass

from data_plane.adapters.lifecycle import AdapterManager
from data_plane.adapters.names import Owner, owner_of
from data_plane.adapters.revision import AdapterSource
from data_plane.kv_cache.tables import BlockTables
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
        self._tables = tables
        self._adapters = adapters
        self._counters = counters
        self._limits = limits
        self._base_digest = base_digest
        self._running: list[Request] = []  # oldest first
        self._preempted: list[Request] = []  # oldest first
        self._planned: list[Planned] = []
        self._admissions = 0
        self._num_sequences = 0  # that running requests may compute in one step
        self.max_adapters_in_step = 0

    @property
    def num_running(self) -> int:
        """Requests with blocks."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Requests without blocks."""
        return len(self.lanes) + len(self._preempted)

    def leasing(self, digest: str) -> list[Request]:
        """Requests that hold a lease on an adapter."""
        return [request for request in (*self._running, *self._preempted) if request.digest == digest]

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
        self._leave(request)
        self._unlease(request)

    def end_sequence(self, request: Request, sequence: Sequence) -> None:
        """One of a running request's sequences has ended: free its blocks."""
        sequence.done = True
        self._num_sequences -= 1
        self._close(sequence)

    def schedule(self) -> StepPlan:
        """Plan the next step; empty when nobody can compute anything."""
        self.turns.advance(self._running)
        batch = Batch(self._limits.max_tokens, self._count_decodes())
        self._continue(batch)
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
            table = sequence.table
            assert table is not None, "blocks are kept while a step runs"
            sequence.num_computed += num_tokens
            self._tables.publish(table, sequence.token_ids, sequence.num_computed)
            if request.sampling.n > 1:
                self._share_prompt(request, sequence)
            if sequence.num_computed == len(sequence.token_ids):
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
                self._seal(request)
            else:
                self._restart(request, source)
        if rebound:
            self.turns.admitted(source.revision.digest)

    def check(self) -> None:
        """Raise AssertionError unless blocks and leases are exactly those of the live requests."""
        self._tables.check()
        held: dict[str, int] = {}
        for request in (*self._running, *self._preempted):
            if request.digest is not None:
                held[request.digest] = held.get(request.digest, 0) + 1
        for digest in self._adapters.slots:
            leases = self._adapters.slots.leases(digest)
            assert leases == held.get(digest, 0), f"{digest}: {leases} leases, {held} in use"
        if not self._running:
            free = self._tables.num_free
            assert free == self._tables.num_blocks, f"{free} of {self._tables.num_blocks} blocks are free"

    # Running

    def _count_decodes(self) -> int:
        return sum(
            len(sequence.token_ids) - sequence.num_computed == 1 and sequence.table is not None
            for request in self._running
            for sequence in request.sequences
            if not sequence.done
        )

    def _continue(self, batch: Batch) -> None:
        for request in tuple(self._running):
            if request.state is RequestState.RUNNING:  # not preempted by an older one meanwhile
                self._plan(batch, request, joining=False)

    def _plan(self, batch: Batch, request: Request, *, joining: bool) -> None:
        """Plan what each of its sequences can compute, or preempt the request; never a part of it."""
        chunks = []
        for sequence in request.sequences:
            if sequence.table is None:  # done, or its leader computes the prompt
                continue
            num_tokens = len(sequence.token_ids) - sequence.num_computed
            if joining or num_tokens > 1:  # room for the decodes of the others was set aside
                num_tokens = min(num_tokens, batch.prefill_left)
                batch.prefill_left -= num_tokens
            if num_tokens == 0:
                continue
            if not self._make_room(request, sequence, num_tokens, joining=joining):
                return
            chunks.append((sequence, num_tokens))
        for sequence, num_tokens in chunks:
            batch.add(request, sequence, num_tokens)

    def _make_room(self, request: Request, sequence: Sequence, num_tokens: int, *, joining: bool) -> bool:
        """Cover more tokens with blocks of the youngest; False when `request` itself gave up its own."""
        assert sequence.table is not None, "a sequence without blocks is not planned"
        while not self._tables.grow(sequence.table, sequence.num_computed + num_tokens):
            # Who joins takes from nobody: the others are in the plan already.
            youngest = request if joining else self._running[-1]
            self._preempt(youngest)
            if youngest is request:
                return False
        return True

    def _preempt(self, request: Request) -> None:
        self._leave(request)
        request.preempt()
        insort(self._preempted, request, key=_admission)

    # Admission

    def _admit(self, batch: Batch) -> None:
        # Strictly in order: one that does not fit yet is not overtaken, or large ones would starve.
        while batch.prefill_left > 0:
            request = self._preempted[0] if self._preempted else self._first_waiting()
            if request is None or not self._start(request):
                return
            self._plan(batch, request, joining=True)
            if request.state is not RequestState.RUNNING:
                return

    def _first_waiting(self) -> Request | None:
        return self.lanes.first((None, *self.turns.admissible())) if len(self.lanes) else None

    def _start(self, request: Request) -> bool:
        """Give a request its blocks and lease; False, and nothing changed, when it does not fit."""
        sequences = request.unfinished
        if self._num_sequences + len(sequences) > self._limits.max_sequences:
            return False
        leader = sequences[0]
        table = self._tables.open(request.digest or self._base_digest, leader.token_ids)
        if table is None:
            return False
        leader.table = table
        leader.num_computed = table.num_published * self._tables.block_size
        if request.state is RequestState.PREEMPTED:
            self._preempted.remove(request)
            request.run(request.slot)
        else:
            self._admit_new(request, leader.num_computed)
        self._num_sequences += len(sequences)
        insort(self._running, request, key=_admission)
        self._share_prompt(request, leader)
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

    def _share_prompt(self, request: Request, leader: Sequence) -> None:
        """Once the prompt's full blocks are computed, the other sequences share them.

        Each computes the rest of the prompt, less than a block, into a block of its own.
        """
        size = self._tables.block_size
        num_shared = (leader.num_prompt - 1) // size
        if leader.table is None or leader.num_computed < num_shared * size:
            return
        for sequence in request.unfinished:
            if sequence.table is None:
                sequence.table = self._tables.fork(leader.table, num_shared)
                sequence.num_computed = num_shared * size

    def _wait(self, request: Request) -> None:
        digest = request.digest
        if digest is not None:
            if digest not in self._adapters.slots and request.state is RequestState.WAITING:
                request.await_adapter()
            self.turns.enqueue(digest)
        self.lanes.add(request)

    # Leaving

    def _leave(self, request: Request) -> None:
        if request in self._preempted:
            self._preempted.remove(request)
            return
        self._running.remove(request)
        for sequence in request.unfinished:
            self._num_sequences -= 1
            self._close(sequence)

    def _close(self, sequence: Sequence) -> None:
        if sequence.table is not None:
            self._tables.close(sequence.table)
            sequence.table = None

    def _unlease(self, request: Request) -> None:
        if request.digest is not None:
            self._adapters.release(request.digest)

    def _restart(self, request: Request, source: AdapterSource) -> None:
        if request.state is RequestState.RUNNING:
            self._preempt(request)
        self._preempted.remove(request)
        self._unlease(request)
        request.requeue()
        request.source = source
        self._wait(request)

    def _seal(self, request: Request) -> None:
        for sequence in request.unfinished:
            if sequence.table is not None:
                sequence.table.seal()

    def _count_adapters(self) -> None:
        slots = {request.slot for request, _, _ in self._planned}
        slots.discard(None)
        self.max_adapters_in_step = max(self.max_adapters_in_step, len(slots))


def _admission(request: Request) -> int:
    return request.admission


def of_owner(requests: Iterable[Request], owner: Owner) -> list[Request]:
    """Those of the requests that are for an adapter of this owner."""
    return [
        request
        for request in requests
        if request.source is not None and owner_of(request.source.revision) == owner
    ]
