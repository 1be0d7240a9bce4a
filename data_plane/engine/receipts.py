"""Receipts: what a request is told as it starts. Keeps no state.

The revision is the one whose slot the request leases at this moment: what it computes from here on.
"""

from data_plane.adapters.lifecycle import AdapterManager
from data_plane.adapters.revision import Tier
from data_plane.engine.events import Started
from data_plane.scheduler.request import Request


def receipt(request: Request, adapters: AdapterManager, now_s: float) -> Started:
    """For a request that computes its first tokens now: its revision, where that was, how long it took."""
    tier: Tier | None = None
    load_s = 0.0
    if request.digest is not None:
        tier, load_s = adapters.arrival(request.digest).seen_from(request.arrival_s)
    return Started(
        request_id=request.id,
        revision=request.source.revision if request.source else None,
        tier=tier,
        load_s=load_s,
        queue_s=now_s - request.arrival_s,
    )
