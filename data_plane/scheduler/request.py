"""Requests and their sequences, as a state machine with every transition named.

Knows nothing of queues, tensors or text. A request holds a lease exactly in the states RUNNING
and PREEMPTED, and blocks exactly in RUNNING.

                 await_adapter                 run                      finish
    WAITING ──────────────────▶ LOADING   WAITING ──▶ RUNNING ──────────────────▶ FINISHED
       ▲ ◀──────────────────────┘            ▲           │ ▲
       │         adapter_arrived             │   preempt ▼ │ run
       └─────────────────────────────────────┴──── PREEMPTED
                                       requeue
    Every state but the last three: fail ─▶ FAILED, cancel ─▶ CANCELLED.
"""

from enum import Enum

from data_plane.adapters.revision import AdapterSource
from data_plane.kv_cache.tables import BlockTable
from data_plane.scheduler.sampling import SamplingParams

SEED_STEP = 0x9E3779B97F4A7C15  # 2⁶⁴ over the golden ratio: seeds of the n sequences never meet
SEED_MASK = (1 << 63) - 1


class RequestState(Enum):
    """Where a request stands."""

    WAITING = "waiting"  # for its turn
    LOADING = "loading"  # for its adapter to come into a slot
    RUNNING = "running"
    PREEMPTED = "preempted"  # its blocks were taken; it keeps its lease and computes again
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"


_LIVE = frozenset({RequestState.WAITING, RequestState.LOADING, RequestState.RUNNING, RequestState.PREEMPTED})


class Sequence:
    """One of the `n` generations of a request: its tokens and how far they are computed."""

    __slots__ = ("done", "id", "index", "num_computed", "num_prompt", "seed", "table", "token_ids")

    def __init__(self, sequence_id: int, index: int, prompt_ids: tuple[int, ...], seed: int) -> None:
        self.id = sequence_id
        self.index = index
        self.num_prompt = len(prompt_ids)
        self.token_ids = list(prompt_ids)
        self.num_computed = 0
        self.table: BlockTable | None = None
        self.seed = (seed + index * SEED_STEP) & SEED_MASK
        self.done = False

    @property
    def num_outputs(self) -> int:
        """Tokens generated."""
        return len(self.token_ids) - self.num_prompt

    @property
    def output_ids(self) -> tuple[int, ...]:
        """Tokens generated."""
        return tuple(self.token_ids[self.num_prompt :])


class Request:
    """One request in the engine; `order` is its place in the order of arrival."""

    __slots__ = (
        "admission",
        "arrival_s",
        "cached_tokens",
        "deadline_s",
        "id",
        "max_len",
        "order",
        "priority",
        "prompt_ids",
        "sampling",
        "sequences",
        "slot",
        "source",
        "started",
        "state",
        "tenant",
    )

    def __init__(
        self,
        *,
        request_id: str,
        order: int,
        prompt_ids: tuple[int, ...],
        sampling: SamplingParams,
        seed: int,
        max_len: int,
        arrival_s: float,
        source: AdapterSource | None = None,
        tenant: str = "",
        priority: int = 0,
        deadline_s: float | None = None,
    ) -> None:
        self.id = request_id
        self.order = order
        self.prompt_ids = prompt_ids
        self.sampling = sampling
        self.max_len = max_len  # of a sequence, prompt included
        self.arrival_s = arrival_s
        self.source = source
        self.tenant = tenant
        self.priority = priority
        self.deadline_s = deadline_s
        self.state = RequestState.WAITING
        self.slot: int | None = None
        self.admission = -1  # place in the order of first admission; the highest is preempted first
        self.started = False  # the receipt is out
        self.cached_tokens = 0
        # Ids are unique while order and index are: n is bounded, see SamplingParams.
        self.sequences = [Sequence(order * 64 + i, i, prompt_ids, seed) for i in range(sampling.n)]

    @property
    def digest(self) -> str | None:
        """Digest of the adapter it needs; None computes the base model."""
        return self.source.revision.digest if self.source else None

    @property
    def live(self) -> bool:
        """Whether the request has not ended."""
        return self.state in _LIVE

    @property
    def unfinished(self) -> list[Sequence]:
        """Sequences that have not ended, the leader first: the others share the prompt it computes."""
        return [sequence for sequence in self.sequences if not sequence.done]

    @property
    def remaining_tokens(self) -> int:
        """Most tokens it may still compute."""
        return sum(self.max_len - sequence.num_computed for sequence in self.unfinished)

    def await_adapter(self) -> None:
        """The adapter is in no slot."""
        self._go(RequestState.LOADING, RequestState.WAITING)

    def adapter_arrived(self) -> None:
        """The adapter is in a slot."""
        self._go(RequestState.WAITING, RequestState.LOADING)

    def run(self, slot: int | None) -> None:
        """Admitted: it has blocks, and a lease on its slot."""
        self._go(RequestState.RUNNING, RequestState.WAITING, RequestState.PREEMPTED)
        self.slot = slot

    def preempt(self) -> None:
        """Its blocks were taken; what it has computed is lost, what it has said is not."""
        self._go(RequestState.PREEMPTED, RequestState.RUNNING)
        for sequence in self.unfinished:
            sequence.num_computed = 0

    def requeue(self) -> None:
        """Its lease was given back too: it waits for an adapter like a new request."""
        self._go(RequestState.WAITING, RequestState.PREEMPTED)
        self.slot = None

    def finish(self) -> None:
        """Every sequence has ended."""
        self._go(RequestState.FINISHED, RequestState.RUNNING)

    def fail(self) -> None:
        """It ends with an error."""
        self._go(RequestState.FAILED, *_LIVE)

    def cancel(self) -> None:
        """Its client or an eviction ends it."""
        self._go(RequestState.CANCELLED, *_LIVE)

    def _go(self, to: RequestState, *allowed: RequestState) -> None:
        if self.state not in allowed:
            raise ValueError(f"request {self.id}: {self.state.value} cannot become {to.value}")
        self.state = to
