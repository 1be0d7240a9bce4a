"""How much of the rank pool's memory holds weights: mixed ranks side by side, pages of 8 rows.

Needed is what the tensors of the adapters' files take in bf16; allocated is the pages that their
slots own, in a pool of 1 GiB filled until nothing more fits. Padded slots are the same adapters,
each in a place for the largest rank.
"""

import random
import tempfile
from pathlib import Path

from data_plane.adapters.layout import pages_for
from data_plane.adapters.pages import PageAllocator
from data_plane.adapters.pool import TorchRankPool
from data_plane.adapters.slots import Slots
from data_plane.config import EngineConfig
from data_plane.engine.runtime import build_runtime
from tests.benchmarks.synthetic import ALL_LINEAR, AdapterFactory
from tests.oracle import MODEL_DIR

RANKS = (8, 16, 32, 64)
POOL_BYTES = 1 << 30
NUM_CHANGES = 200  # pairs of adapters that come and go before the pool is measured


def measure() -> dict[str, float]:
    """The figures of the pool."""
    with tempfile.TemporaryDirectory() as directory:
        config = EngineConfig(
            model=MODEL_DIR,
            max_lora_rank=max(RANKS),
            kv_cache_bytes=16 << 20,
            adapter_roots=(Path(directory),),
        )
        runtime = build_runtime(config)
        factories = [AdapterFactory(Path(directory) / str(r), rank=r, modules=ALL_LINEAR) for r in RANKS]
        packed = [runtime.reader.read(factory.make(0)) for factory in factories]
    page_bytes = runtime.rank_pool.page_bytes
    num_pages = POOL_BYTES // page_bytes
    pool = TorchRankPool(
        runtime.layout, num_slots=num_pages, num_pages=num_pages, dtype=runtime.reader.packer.dtype
    )
    slots = Slots(num_pages, PageAllocator(num_pages))

    residents: dict[str, int] = {}  # which of the adapters is behind each name

    def put(name: str, kind: int) -> bool:
        placement = slots.reserve(name, packed[kind].num_pages, keep=residents)
        if placement is None:
            return False
        pool.write(placement.pages, packed[kind])
        slots.commit(name)
        residents[name] = kind
        return True

    while put(str(len(residents)), len(residents) % len(RANKS)):  # as many of each rank
        pass
    rng = random.Random(0)
    for number in range(NUM_CHANGES):
        # Two leave and two of the same ranks come, the other way round: into each other's pages.
        leaving = rng.sample(sorted(residents), 2)
        kinds = [residents.pop(name) for name in leaving]
        for name in leaving:
            slots.evict(name)
        for place, kind in enumerate(reversed(kinds)):
            if not put(f"{number}.{place}", kind):
                raise RuntimeError(f"no room for an adapter of rank {RANKS[kind]} where one had been")
    slots.check()
    needed = sum(factories[kind].num_bytes for kind in residents.values())
    allocated = slots.num_used_pages * page_bytes
    padded_pages = pages_for(max(RANKS))
    mean_pages = sum(pages_for(rank) for rank in RANKS) / len(RANKS)
    print(
        f"  rank pool of 1 GiB after {NUM_CHANGES} changes: {len(residents)} residents of ranks {RANKS},"
        f" {num_pages // padded_pages} in padded slots; {slots.num_used_pages} of {num_pages} pages used"
    )
    return {
        "pool_efficiency": needed / allocated,
        "pool_padded_efficiency": mean_pages / padded_pages,
        "pool_residents_vs_padded": len(residents) / (num_pages // padded_pages),
    }
