"""Requests that were admitted: the running ones with their blocks, and the preempted ones without.

Owns which sequence has which blocks and what a step computes of it; knows nothing of waiting requests,
tenants or leases, which a preempted request keeps. Running requests are served in the order of
their admission; when blocks run out the youngest gives up its own and computes again later, so the
oldest always ends.
"""

from bisect import insort
from collections.abc import Sequence as Row

from data_plane.kv_cache.tables import BlockTables
from data_plane.scheduler.batch import Batch
from data_plane.scheduler.request import Request, RequestState, Sequence


class AdmittedRequests:
    """Running and preempted requests."""

    def __init__(self, tables: BlockTables, *, max_sequences: int, base_digest: str) -> None:
        self._tables = tables
        self._max_sequences = max_sequences  # that a step computes
        self._base_digest = base_digest
        self._running: list[Request] = []  # oldest first
        self._preempted: list[Request] = []  # oldest first
        self._num_sequences = 0  # that running requests may compute in one step

    @property
    def running(self) -> Row[Request]:
        """Those with blocks, the oldest first."""
        return self._running

    @property
    def num_preempted(self) -> int:
        """Those that gave up their blocks."""
        return len(self._preempted)

    @property
    def first_preempted(self) -> Request | None:
        """Who runs again before anyone new does."""
        return self._preempted[0] if self._preempted else None

    @property
    def all(self) -> list[Request]:
        """Every admitted request."""
        return [*self._running, *self._preempted]

    @property
    def num_decodes(self) -> int:
        """Sequences that compute one token next."""
        return sum(
            len(sequence.token_ids) - sequence.num_computed == 1 and sequence.table is not None
            for request in self._running
            for sequence in request.sequences
            if not sequence.done
        )

    def open(self, request: Request) -> bool:
        """Find blocks for a request that is to run; False, and nothing changed, when there are none."""
        sequences = request.unfinished
        if self._num_sequences + len(sequences) > self._max_sequences:
            return False
        leader = sequences[0]
        table = self._tables.open(request.digest or self._base_digest, leader.token_ids)
        if table is None:
            return False
        leader.table = table
        leader.num_computed = table.num_published * self._tables.block_size
        return True

    def enter(self, request: Request) -> None:
        """A request with blocks runs from now on; it may have been preempted."""
        if request in self._preempted:
            self._preempted.remove(request)
        sequences = request.unfinished
        self._num_sequences += len(sequences)
        insort(self._running, request, key=_admission)
        self.share_prompt(request, sequences[0])

    def leave(self, request: Request) -> None:
        """A request is no longer here: its blocks are free."""
        if request in self._preempted:
            self._preempted.remove(request)
            return
        self._running.remove(request)
        for sequence in request.unfinished:
            self._num_sequences -= 1
            self._close(sequence)

    def preempt(self, request: Request) -> None:
        """Take a running request's blocks; what it has computed is lost."""
        self.leave(request)
        request.preempt()
        insort(self._preempted, request, key=_admission)

    def end_sequence(self, sequence: Sequence) -> None:
        """One of a running request's sequences has ended: free its blocks."""
        sequence.done = True
        self._num_sequences -= 1
        self._close(sequence)

    def plan_all(self, batch: Batch) -> None:
        """Plan what everyone computes next."""
        for request in tuple(self._running):
            if request.state is RequestState.RUNNING:  # not preempted by an older one meanwhile
                self.plan(batch, request, joining=False)

    def plan(self, batch: Batch, request: Request, *, joining: bool) -> None:
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

    def computed(self, request: Request, sequence: Sequence, num_tokens: int) -> bool:
        """More tokens of a sequence are in its blocks; whether all of them are, so that one was drawn."""
        table = sequence.table
        assert table is not None, "blocks are kept while a step runs"
        sequence.num_computed += num_tokens
        self._tables.publish(table, sequence.token_ids, sequence.num_computed)
        if request.sampling.n > 1:
            self.share_prompt(request, sequence)
        return sequence.num_computed == len(sequence.token_ids)

    def share_prompt(self, request: Request, leader: Sequence) -> None:
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

    def seal(self, request: Request) -> None:
        """What a request computed so far is no prefix for others: its weights have changed."""
        for sequence in request.unfinished:
            if sequence.table is not None:
                sequence.table.seal()

    def check(self) -> None:
        """Raise AssertionError unless every block belongs to a running request."""
        self._tables.check()
        if not self._running:
            free = self._tables.num_free
            assert free == self._tables.num_blocks, f"{free} of {self._tables.num_blocks} blocks are free"

    def _make_room(self, request: Request, sequence: Sequence, num_tokens: int, *, joining: bool) -> bool:
        """Cover more tokens with blocks of the youngest; False when `request` itself gave up its own."""
        assert sequence.table is not None, "a sequence without blocks is not planned"
        while not self._tables.grow(sequence.table, sequence.num_computed + num_tokens):
            # Who joins takes from nobody: the others are in the plan already.
            youngest = request if joining else self._running[-1]
            self.preempt(youngest)
            if youngest is request:
                return False
        return True

    def _close(self, sequence: Sequence) -> None:
        if sequence.table is not None:
            self._tables.close(sequence.table)
            sequence.table = None


def _admission(request: Request) -> int:
    return request.admission
