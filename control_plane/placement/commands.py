"""Commands to workers as values: what to do, on which worker, derived from which generation."""

from dataclasses import dataclass
from enum import Enum

from control_plane.registry.types import Adapter, AdapterKey, PinTier, ReloadPolicy, Revision


class Verb(Enum):
    """What a command does; with worker and adapter it names the command's place in the ledger."""

    LOAD = "load"
    EVICT = "evict"
    RELOAD = "reload"
    PIN = "pin"
    DRAIN = "drain"


@dataclass(frozen=True, slots=True)
class Load:
    """Hold a revision: in the CPU cache, or in a slot too."""

    key: AdapterKey
    revision: Revision
    into_slot: bool = False
    verb = Verb.LOAD


@dataclass(frozen=True, slots=True)
class Evict:
    """Hold a revision no longer."""

    key: AdapterKey
    digest: str
    cancel_running: bool = False
    verb = Verb.EVICT


@dataclass(frozen=True, slots=True)
class Reload:
    """Replace what is held under a name."""

    key: AdapterKey
    revision: Revision
    policy: ReloadPolicy
    replaces_digest: str = ""  # empty: whatever is held
    verb = Verb.RELOAD


@dataclass(frozen=True, slots=True)
class Pin:
    """Keep a revision in a tier; PinTier.NONE takes the pin back."""

    key: AdapterKey
    digest: str
    tier: PinTier
    verb = Verb.PIN


@dataclass(frozen=True, slots=True)
class Drain:
    """Finish what runs, take nothing more. About the worker, not an adapter."""

    key = AdapterKey("", "")
    verb = Verb.DRAIN


Action = Load | Evict | Reload | Pin | Drain


@dataclass(frozen=True, slots=True)
class Command:
    """An action for one worker. A worker refuses a lower generation of the same adapter than its last."""

    worker_id: str
    generation: int
    action: Action

    @property
    def place(self) -> tuple[str, AdapterKey, Verb, int]:
        """What it is about: a later command of the same place takes this one's.

        Loads of different revisions do not: several are served at once where traffic is split.
        """
        number = self.action.revision.number if isinstance(self.action, Load) else 0
        return self.worker_id, self.action.key, self.action.verb, number


def load(
    worker_id: str, adapter: Adapter, revision: Revision | None = None, *, into_slot: bool = False
) -> Command:
    """Hold a revision of the adapter, the current one unless another is named."""
    return Command(worker_id, adapter.generation, Load(adapter.key, revision or adapter.current, into_slot))


def reload(
    worker_id: str, adapter: Adapter, *, policy: ReloadPolicy | None = None, replaces_digest: str = ""
) -> Command:
    """Replace what is held by the adapter's current revision."""
    action = Reload(adapter.key, adapter.current, policy or adapter.reload_policy, replaces_digest)
    return Command(worker_id, adapter.generation, action)


def evict(worker_id: str, adapter: Adapter, digest: str, *, cancel_running: bool = False) -> Command:
    """Hold a revision of the adapter no longer."""
    return Command(worker_id, adapter.generation, Evict(adapter.key, digest, cancel_running))


def pin(worker_id: str, adapter: Adapter) -> Command:
    """Keep the adapter's current revision where the adapter says."""
    return Command(worker_id, adapter.generation, Pin(adapter.key, adapter.current.digest, adapter.pin))
