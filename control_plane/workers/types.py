"""Workers as values: what they can hold, what they hold and do. Nothing about how they are reached."""

from dataclasses import dataclass, field
from enum import Enum

from control_plane.registry.types import AdapterKey


class WorkerState(Enum):
    """Whether a worker takes requests."""

    READY = "ready"
    CORDONED = "cordoned"  # takes no new requests and adapters
    DRAINING = "draining"  # cordoned, and hands its adapters over
    LOST = "lost"  # its lease ended: nothing is sent to it until it says hello again


class Tier(Enum):
    """Where a worker holds a revision, fastest first."""

    SLOT = "slot"
    CPU = "cpu"
    DISK = "disk"
    SOURCE = "source"


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What a worker can hold. Fixed at its start."""

    max_loras: int = 1
    max_lora_rank: int = 16
    slot_bytes: int = 0
    cpu_bytes: int = 0
    disk_bytes: int = 0
    num_blocks: int = 0
    block_size: int = 0
    max_num_seqs: int = 1
    max_model_len: int = 0
    max_cpu_loras: int = 0  # adapters in the CPU cache; 0: bounded by bytes alone


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldAdapter:
    """A revision that a worker holds, in the fastest tier that has it."""

    key: AdapterKey
    revision: int
    digest: str
    rank: int
    tier: Tier
    size_bytes: int = 0
    leases: int = 0
    pinned: bool = False
    # Differs in every report of a worker that does nothing, and says nothing that placement reads.
    idle_s: float = field(default=0.0, compare=False)
    slot_bytes: int = 0
    cpu_bytes: int = 0
    disk_bytes: int = 0

    @property
    def may_leave(self) -> bool:
        """Whether the worker may evict it from memory."""
        return self.tier in (Tier.SLOT, Tier.CPU) and not self.leases and not self.pinned


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus:
    """What a worker holds and does at one moment."""

    adapters: tuple[HeldAdapter, ...] = ()
    running_requests: int = 0
    waiting_requests: int = 0
    free_blocks: int = 0
    slot_bytes_used: int = 0
    cpu_bytes_used: int = 0
    disk_bytes_used: int = 0
    computed_tokens: int = 0
    cold_loads: int = 0
    max_adapters_in_step: int = 0
    steps: int = 0
    # Derived once a report, because every request asks every worker what it holds.
    held: dict[str, HeldAdapter] = field(init=False, repr=False, compare=False)  # by digest
    num_resident: int = field(init=False, repr=False, compare=False)  # adapters in slots
    longest_idle_s: float = field(init=False, repr=False, compare=False)  # of what could be evicted

    def __post_init__(self) -> None:
        object.__setattr__(self, "held", {adapter.digest: adapter for adapter in self.adapters})
        resident = sum(adapter.tier is Tier.SLOT for adapter in self.adapters)
        object.__setattr__(self, "num_resident", resident)
        idle_s = (held.idle_s for held in self.adapters if held.may_leave)
        object.__setattr__(self, "longest_idle_s", max(idle_s, default=0.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """One worker process (or group of tensor-parallel ranks)."""

    worker_id: str  # stable over restarts
    instance_id: str  # new at every start
    address: str  # host:port of its Inference service
    base_model: str
    base_model_digest: str
    capacity: Capacity
    status: WorkerStatus = field(default_factory=WorkerStatus)
    state: WorkerState = WorkerState.READY
    replica: str = ""  # the control-plane process that has its session
    session: str = ""  # the stream that may speak for it
    last_report_s: float = 0.0  # Unix time
    lease_expires_s: float = 0.0  # Unix time

    @property
    def live(self) -> bool:
        """Whether its lease runs."""
        return self.state is not WorkerState.LOST


@dataclass(frozen=True, slots=True)
class HeldBytes:
    """Bytes of a tenant's adapters in each tier, and the slots they take, over all workers."""

    slot_bytes: int
    cpu_bytes: int
    disk_bytes: int = 0
    slots: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A worker's answer to one command."""

    ok: bool
    reason: str = ""
    terminal: bool = False  # the same command can never succeed
    elapsed_s: float = 0.0
    size_bytes: int = 0  # that became free (evict) or used (load)


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome of an operator's command on one worker."""

    worker_id: str
    outcome: Outcome
