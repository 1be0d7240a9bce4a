"""Status: what the engine holds, as immutable values that any thread may read."""

from data_plane.adapters.lifecycle import AdapterManager
from data_plane.adapters.revision import Tier
from data_plane.engine.events import HeldAdapter


def held_adapters(adapters: AdapterManager) -> tuple[HeldAdapter, ...]:
    """Every revision in any tier: residents first, each tier from the longest unused on."""
    return tuple(
        HeldAdapter(
            revision=source.revision,
            rank=adapters.rank(digest),
            tier=Tier.SLOT if digest in adapters.slots else Tier.CPU,
            slot_bytes=adapters.slot_bytes(digest),
            cpu_bytes=adapters.cpu_bytes(digest),
            leases=adapters.slots.leases(digest),
            pinned=adapters.is_pinned(digest),
            idle_s=adapters.idle_s(digest),
        )
        for digest in adapters.held()
        if (source := adapters.names.source(digest)) is not None
    )
