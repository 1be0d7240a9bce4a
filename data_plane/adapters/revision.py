"""The identity of adapter weights, and where they are read from.

The content digest is the identity everywhere: in leases, prefix-cache keys, grants and
receipts. Names and numbers are for people; two revisions with one digest are one set of weights.
"""

from dataclasses import dataclass
from enum import Enum


class Tier(Enum):
    """Where a request found its adapter, fastest first."""

    SLOT = "slot"
    CPU = "cpu"
    DISK = "disk"
    SOURCE = "source"


class ReloadPolicy(Enum):
    """What happens to running requests when an adapter's weights change."""

    IMMEDIATE = "immediate"
    FINISH_RUNNING = "finish_running"
    DRAIN = "drain"


@dataclass(frozen=True, slots=True)
class Revision:
    """One immutable set of weights of one named adapter of one tenant."""

    tenant: str
    name: str
    number: int
    digest: str  # "sha256:<64 hex>", see protos/registry/v1/registry.proto


@dataclass(frozen=True, slots=True)
class AdapterSource:
    """A revision and where its files are."""

    revision: Revision
    uri: str  # absolute path or file:// URI of a directory
