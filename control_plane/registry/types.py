"""Adapters and their revisions as values: what exists, nothing about where it runs."""

from dataclasses import dataclass, field, replace
from enum import Enum


class RevisionState(Enum):
    """Whether a revision can be served."""

    RESOLVING = "resolving"
    READY = "ready"
    FAILED = "failed"


class ReloadPolicy(Enum):
    """What happens to running requests when an adapter's weights change."""

    IMMEDIATE = "immediate"
    FINISH_RUNNING = "finish_running"
    DRAIN = "drain"


class PinTier(Enum):
    """Where a pinned adapter stays."""

    NONE = "none"
    CPU = "cpu"
    SLOT = "slot"


@dataclass(frozen=True, slots=True, order=True)
class AdapterKey:
    """An adapter's identity: its name is unique within its tenant."""

    tenant: str
    name: str

    def __str__(self) -> str:
        return f"{self.tenant}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """Immutable weights of an adapter; `digest` is their identity everywhere."""

    number: int
    digest: str
    source: str  # canonical URI
    rank: int
    target_modules: tuple[str, ...]
    size_bytes: int
    state: RevisionState = RevisionState.READY
    failure: str = ""
    created_s: float = 0.0  # Unix time, from Redis

    @property
    def ready(self) -> bool:
        """Whether it can be served."""
        return self.state is RevisionState.READY


@dataclass(frozen=True, slots=True)
class TrafficWeight:
    """A share of an adapter's traffic."""

    revision: int
    weight: int


class DecisionKind(Enum):
    """What was decided about an adapter's traffic."""

    TRAFFIC_SET = "traffic_set"
    CANARY_STARTED = "canary_started"
    CANARY_PROMOTED = "canary_promoted"
    CANARY_ENDED = "canary_ended"
    CANARY_ROLLED_BACK = "canary_rolled_back"


@dataclass(frozen=True, slots=True)
class TrafficDecision:
    """One decision about an adapter's traffic, and why."""

    time_s: float  # Unix time, from Redis
    kind: DecisionKind
    revision: int  # 0: about all of them
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """A revision on trial against the current one, and when it has failed."""

    revision: int
    percent: int
    max_error_increase: float = 0.05  # of the share of failed requests
    max_first_token_ratio: float = 2.0
    window_s: float = 60.0
    min_requests: int = 20
    start_s: float = 0.0  # Unix time, from Redis


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A named adapter of one tenant with its kept revisions, oldest first."""

    key: AdapterKey
    base_model: str
    revisions: tuple[Revision, ...]
    current_revision: int
    generation: int  # grows with every change of what should be; commands carry it
    resource_version: int  # order of changes over the whole registry
    aliases: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)
    shared_with: tuple[str, ...] = ()
    traffic: tuple[TrafficWeight, ...] = ()  # empty: all to the current revision
    canary: Canary | None = None  # the traffic has its share, then
    decisions: tuple[TrafficDecision, ...] = ()  # the last ones, oldest first
    pin: PinTier = PinTier.NONE
    reload_policy: ReloadPolicy = ReloadPolicy.FINISH_RUNNING
    created_s: float = 0.0
    updated_s: float = 0.0
    deleted_s: float = 0.0  # when its deletion was asked for; 0: it was not

    @property
    def deleting(self) -> bool:
        """Whether it only waits for workers to hold it no longer."""
        return self.deleted_s > 0

    @property
    def current(self) -> Revision:
        """The revision that new requests use."""
        return self.revision(self.current_revision)

    def known_as(self, tenant: str) -> str:
        """The name that a tenant's requests use: with the owner's when it is another's."""
        return self.key.name if self.key.tenant == tenant else str(self.key)

    def revision(self, number: int) -> Revision:
        """Return a kept revision; KeyError when it is not kept."""
        for revision in self.revisions:
            if revision.number == number:
                return revision
        raise KeyError(number)


def as_shared_with(adapter: Adapter, tenant: str) -> Adapter:
    """Return what a tenant that an adapter is shared with may know of it: not with whom else it is."""
    return replace(adapter, shared_with=(tenant,), labels={})


@dataclass(frozen=True, slots=True, kw_only=True)
class NewAdapter:
    """What a caller says to register an adapter."""

    key: AdapterKey
    source: str = ""  # empty: resolve by name
    base_model: str = ""  # empty: the one the workers serve
    aliases: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)
    shared_with: tuple[str, ...] = ()
    expected_digest: str = ""
    confined: bool = False  # the source must be one kept for the tenant
    reload_policy: ReloadPolicy = ReloadPolicy.FINISH_RUNNING


@dataclass(frozen=True, slots=True)
class Target:
    """What a model name stands for: the base model (adapter None) or one revision of an adapter."""

    base_model: str
    adapter: Adapter | None = None
    revision: Revision | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Adapters by tenant and name; an empty token ends the listing."""

    adapters: tuple[Adapter, ...]
    next_page_token: str
