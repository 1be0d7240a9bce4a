"""Who calls: identities and roles as values."""

from dataclasses import dataclass
from enum import Enum


class Role(Enum):
    """What a key may do."""

    ADMIN = "admin"  # everything, for every tenant
    TENANT_ADMIN = "tenant-admin"  # adapters and usage of its own tenant, and inference
    INFERENCE = "inference"  # generate with what its tenant may use
    WORKER = "worker"  # the sync stream, nothing else


@dataclass(frozen=True, slots=True)
class Identity:
    """The holder of an API key."""

    key_id: str  # public part of the key; safe to log
    tenant: str  # empty for admin and worker keys
    role: Role


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A new key. `secret` is shown once and stored only as a hash."""

    identity: Identity
    secret: str

    def __repr__(self) -> str:
        return f"IssuedKey(identity={self.identity!r}, secret='***')"


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """A stored key, without what would open anything."""

    identity: Identity
    name: str  # what its maker called it
    created_s: float  # Unix time, from Redis
    last_use_s: float = 0.0  # Unix time, within seconds; 0: never
    expires_s: float = 0.0  # Unix time; 0: never
