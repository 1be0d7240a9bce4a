"""What goes into the engine and what comes out of it, as plain values.

The API and the control-plane stream speak to the engine thread in these alone, so that the
thread can become a process without a change above it.
"""

from dataclasses import dataclass
from enum import Enum

from data_plane.adapters.names import Owner
from data_plane.adapters.revision import AdapterSource, ReloadPolicy, Revision, Tier
from data_plane.errors import WorkerError
from data_plane.scheduler.plan import TokenLogprob
from data_plane.scheduler.sampling import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One request: a prompt, how to sample, and which weights."""

    request_id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    adapter: AdapterSource | None = None  # None: the base model
    tenant: str = ""  # for fairness and usage
    priority: int = 0
    deadline_s: float | None = None  # on the engine's clock (time.monotonic)


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The receipt: the adapter is leased and the first token is about to be computed."""

    request_id: str
    revision: Revision | None  # the one actually leased; None: the base model
    tier: Tier | None  # where it was found; None: the base model
    load_s: float  # spent loading it for this request; 0 when it was in a slot
    queue_s: float  # from arrival to the first computation


@dataclass(frozen=True, slots=True, kw_only=True)
class Logprobs:
    """Log-probabilities at one position."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """New tokens of one of the `n` choices; `text` is never cut inside a character."""

    request_id: str
    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[Logprobs, ...] = ()


class FinishReason(Enum):
    """Why a choice ended."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedChoice:
    """How one choice ended."""

    index: int
    reason: FinishReason
    matched_stop: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The end of a request. Blocks and lease are already free."""

    request_id: str
    choices: tuple[FinishedChoice, ...]
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The request ends with an error. Blocks and lease are already free."""

    request_id: str
    error: WorkerError


Event = Started | Delta | Finished | Failed


@dataclass(frozen=True, slots=True)
class Load:
    """Hold a revision: in the CPU cache, or in a slot too."""

    source: AdapterSource
    into_slot: bool = False


@dataclass(frozen=True, slots=True)
class Evict:
    """Hold a revision no longer: wait for its leases, or cancel the requests that have them.

    While another owner has a revision of the same digest, only the requests of `owner` are waited for
    or cancelled, and the weights stay.
    """

    digest: str
    cancel_running: bool = False
    owner: Owner | None = None  # None: whoever has it


@dataclass(frozen=True, slots=True)
class Reload:
    """Replace what is held under a name; read from the source exactly once."""

    source: AdapterSource
    policy: ReloadPolicy = ReloadPolicy.FINISH_RUNNING


@dataclass(frozen=True, slots=True)
class Pin:
    """Keep a revision in a tier (SLOT or CPU); None takes the pin back."""

    digest: str
    tier: Tier | None


@dataclass(frozen=True, slots=True)
class Drain:
    """Finish what runs, take nothing more."""


Command = Load | Evict | Reload | Pin | Drain


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandDone:
    """The outcome of a command that was carried out; refusals raise a WorkerError."""

    elapsed_s: float
    size_bytes: int  # that became free (evict) or used (load, reload), over all tiers


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldAdapter:
    """A revision that the worker holds in some tier."""

    revision: Revision
    rank: int
    tier: Tier  # the fastest that has it
    slot_bytes: int
    cpu_bytes: int
    disk_bytes: int
    leases: int
    pinned: bool
    used_s: float  # when it was last used or came, on the engine's clock


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatus:
    """What the engine holds and does at one moment; immutable, so any thread may read it."""

    adapters: tuple[HeldAdapter, ...]
    running_requests: int
    waiting_requests: int
    free_blocks: int
    slot_bytes_used: int
    cpu_bytes_used: int
    computed_tokens: int
    cold_loads: int  # reads of a source, ever
    max_adapters_in_step: int
    steps: int
    disk_bytes_used: int = 0
    slot_evictions: int = 0  # revisions that left a tier, ever
    cpu_evictions: int = 0
    disk_evictions: int = 0
    pool_fragmentation: float = 0.0  # share of the free pages outside of their longest run
    taken_s: float = 0.0  # on the engine's clock
