"""Rendezvous hashing: an order of workers for each key that moves little when workers come and go.

Thaler and Ravishankar, "A Name-Based Mapping Scheme for Rendezvous" (1996): each worker scores
`hash(worker, key)`, the highest score comes first. A worker that leaves moves only the keys it held.
"""

from collections.abc import Iterable
from hashlib import blake2b


def score(worker_id: str, key: str) -> int:
    """A worker's claim on a key: the same in every process and on every machine."""
    digest = blake2b(f"{worker_id}\0{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest)


def ranked(key: str, worker_ids: Iterable[str]) -> list[str]:
    """Workers by their claim on the key, best first."""
    return sorted(worker_ids, key=lambda worker_id: (score(worker_id, key), worker_id), reverse=True)
