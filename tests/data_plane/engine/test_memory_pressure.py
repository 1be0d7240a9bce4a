"""Every tier driven over its bound at once: nothing crashes or grows, refusals are RESOURCE_EXHAUSTED."""

import os
import random
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from threading import Semaphore

import pytest
from safetensors.torch import load_file, save_file

from data_plane.adapters.revision import AdapterSource, Tier
from data_plane.engine.assemble import build_engine
from data_plane.engine.events import (
    CommandDone,
    Event,
    Failed,
    Finished,
    GenerationRequest,
    Load,
    Pin,
    Started,
)
from data_plane.engine.runtime import build_runtime
from data_plane.engine.thread import EngineThread
from data_plane.scheduler.sampling import SamplingParams
from tests.data_plane.world import World, source_of, tiny_config

NUM_ADAPTERS = 24
MAX_WAITING = 8
OUTSTANDING = 16  # above what may wait and run together
GROWTH_BYTES = 48 << 20
WEIGHTS = "adapter_model.safetensors"


def make_adapters(world: World, directory: Path) -> list[AdapterSource]:
    """Adapters of their own digests, from one that PEFT made."""
    tensors = load_file(world.adapters["wide"] / WEIGHTS)
    sources = []
    for number in range(NUM_ADAPTERS):
        adapter = directory / f"adapter{number}"
        adapter.mkdir(parents=True)
        (adapter / "adapter_config.json").write_bytes(
            (world.adapters["wide"] / "adapter_config.json").read_bytes()
        )
        save_file({key: tensor * (1 + number / 100) for key, tensor in tensors.items()}, adapter / WEIGHTS)
        sources.append(source_of(adapter))
    return sources


class Client:
    """Counts how requests end; a place is free again when one does."""

    def __init__(self) -> None:
        self.ends: Counter[str] = Counter()
        self.tiers: Counter[Tier] = Counter()
        self.places = Semaphore(OUTSTANDING)

    def deliver(self, deliveries: list[tuple[object, Sequence[Event]]]) -> None:
        for _, events in deliveries:
            for event in events:
                match event:
                    case Started(tier=tier):
                        self.tiers[tier] += 1
                    case Finished():
                        self.ends["finished"] += 1
                        self.places.release()
                    case Failed(error=error):
                        self.ends[type(error).__name__] += 1
                        self.places.release()


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("seconds", [4, pytest.param(60, marks=pytest.mark.slow)])
def test_over_every_bound_the_worker_sheds_queues_refuses_and_goes_on(
    seconds: int, world: World, tmp_path: Path
):
    sources = make_adapters(world, tmp_path / "source")
    disk_bytes = 3 * sum(file.stat().st_size for file in (tmp_path / "source" / "adapter0").iterdir())
    packed_bytes = world.runtime.reader.read(source_of(world.adapters["wide"])).num_bytes
    config = tiny_config(
        world.base,
        tmp_path / "source",
        max_loras=2,
        max_cpu_loras=6,
        cpu_cache_bytes=4 * packed_bytes,
        kv_cache_bytes=20 * 2048,
        max_num_seqs=6,
        max_waiting_requests=MAX_WAITING,
        disk_cache_bytes=disk_bytes,
        disk_cache_dir=tmp_path / "cache",
    )
    runtime = build_runtime(config)
    engine = build_engine(runtime, config)
    client, rng = Client(), random.Random(0)
    thread: EngineThread[object] = EngineThread(engine, client.deliver)
    thread.start()
    refused: Counter[str] = Counter()

    def note(command: "Future[CommandDone]") -> None:
        if (error := command.exception()) is not None:
            refused[type(error).__name__] += 1  # and not the error: its traceback keeps frames alive

    begun_s, settled_rss, number = time.monotonic(), 0, 0
    try:
        while (elapsed_s := time.monotonic() - begun_s) < seconds:
            assert client.places.acquire(timeout=30), "the engine stands still"
            number += 1
            source = sources[int(NUM_ADAPTERS * rng.random() ** 2)]
            thread.submit(
                GenerationRequest(
                    request_id=str(number),
                    prompt_ids=tuple(rng.randrange(256) for _ in range(rng.randrange(1, 40))),
                    sampling=SamplingParams(temperature=0, max_tokens=rng.randrange(1, 24), ignore_eos=True),
                    adapter=source if rng.random() < 0.9 else None,
                    tenant=source.revision.name,
                ),
                client,
            )
            if number % 10 == 0:
                thread.command(Load(source, into_slot=True)).add_done_callback(note)
                digest = rng.choice(sources).revision.digest
                thread.command(Pin(digest, rng.choice([Tier.CPU, None, None]))).add_done_callback(note)
            status = thread.status()
            # Beyond those that were let in to wait: the running ones, when their blocks were taken.
            assert status.waiting_requests <= MAX_WAITING + config.max_num_seqs
            assert status.cpu_bytes_used <= config.cpu_cache_bytes
            assert status.slot_bytes_used <= runtime.bytes.rank_pool
            if not settled_rss and elapsed_s > seconds / 2:
                settled_rss = rss_bytes()
        for _ in range(OUTSTANDING):
            assert client.places.acquire(timeout=30), "a request never ended"
        grown = rss_bytes() - settled_rss
        last = thread.snapshot().result(30)
    finally:
        thread.stop()
    engine.check()
    assert client.ends.keys() <= {"finished", "Overloaded"}, client.ends
    assert client.ends["Overloaded"] > 0, "the queue was never over its bound"
    assert client.ends["finished"] > 20 * seconds / 4
    assert refused.keys() <= {"Overloaded", "AdapterUnknown", "Draining"}
    assert refused["Overloaded"], "the slots were never over their bound"
    assert client.tiers[Tier.SOURCE] > NUM_ADAPTERS / 2, "every tier was left again"
    assert client.tiers[Tier.DISK] > 0
    assert last.disk_bytes_used <= disk_bytes
    assert sum(file.stat().st_size for file in (tmp_path / "cache").rglob("adapter_*")) <= disk_bytes
    assert grown < GROWTH_BYTES, f"{grown} bytes more than at half time"
    print(f"{seconds} s: {dict(client.ends)}, tiers {dict(client.tiers)}, {grown >> 10} KiB grown")
