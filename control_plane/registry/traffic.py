"""Traffic: which revision of an adapter a request gets.

Pure; knows nothing of Redis and of workers. Invariant: the same key gets the same revision for as
long as weights stay, on every replica and over restarts, and when one weight changes, only keys
that go to or leave that revision move.

Weighted rendezvous hashing (Schindelhauer and Schomaker, "Weighted Distributed Hash Tables",
2005): each revision scores `-weight / ln(u)`, u uniform in (0, 1) from a hash of key and revision;
the highest score wins, and wins as often as its share of the weights.
"""

import math
from collections.abc import Iterable
from hashlib import blake2b

from control_plane.registry.types import Adapter, Revision, TrafficWeight


def choose(adapter: Adapter, key: str) -> int:
    """Return the number of the revision that a key's requests get."""
    shares = [share for share in adapter.traffic if share.weight > 0]
    if not shares:
        return adapter.current_revision
    # The adapter is part of the key, so that a caller is not first in line for every trial.
    salted = f"{adapter.key}\0{key}"
    return max(shares, key=lambda share: (_score(share, salted), share.revision)).revision


def served(adapter: Adapter) -> tuple[Revision, ...]:
    """Return every revision that a request may get without naming it, the current one first."""
    numbers = [adapter.current_revision, *(share.revision for share in adapter.traffic if share.weight > 0)]
    return tuple(adapter.revision(number) for number in dict.fromkeys(numbers))


def total(shares: Iterable[TrafficWeight]) -> int:
    """Return the sum of the weights."""
    return sum(share.weight for share in shares)


def _score(share: TrafficWeight, key: str) -> float:
    digest = blake2b(f"{share.revision}\0{key}".encode(), digest_size=8).digest()
    # The middle of one of 2^53 equal parts of (0, 1): never 0 and never 1 in floating point.
    uniform = ((int.from_bytes(digest) >> 11) + 0.5) / (1 << 53)
    return -share.weight / math.log(uniform)
