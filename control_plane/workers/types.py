"""Workers as values: what they can hold, what they hold and do. Nothing about how they are reached."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from control_plane.workers.holdings import HeldAdapter, Holdings


class WorkerState(Enum):
    """Whether a worker takes requests."""

    READY = "ready"
    CORDONED = "cordoned"  # takes no new requests and adapters
    DRAINING = "draining"  # cordoned, and hands its adapters over
    LOST = "lost"  # its lease ended: nothing is sent to it until it says hello again


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
class WorkerStatus:
    """What a worker holds and does at one moment."""

    holdings: Holdings = field(default_factory=Holdings)
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

    @property
    def adapters(self) -> Collection[HeldAdapter]:
        """Every revision it holds."""
        return self.holdings.by_digest.values()

    @property
    def held(self) -> Mapping[str, HeldAdapter]:
        """Every revision it holds, by digest."""
        return self.holdings.by_digest

    @property
    def num_resident(self) -> int:
        """Adapters in slots."""
        return self.holdings.num_resident

    @property
    def unused_since_s(self) -> float:
        """Unix time of the last use of what it would evict first; infinite when nothing may leave."""
        return self.holdings.unused_since_s

    def after(self, change: "StatusChange") -> "WorkerStatus":
        """What it is after a change; of what it holds, the change's adapters alone are looked at."""
        held = change.status.held.values()
        return replace(change.status, holdings=self.holdings.after(held, change.gone))


@dataclass(frozen=True, slots=True)
class StatusChange:
    """What differs from the status before: the load as it is now, and some adapters."""

    status: WorkerStatus  # holds what came or is not as it was
    gone: tuple[str, ...] = ()  # digests


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
