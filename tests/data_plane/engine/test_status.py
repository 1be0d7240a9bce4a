import threading
import time
from dataclasses import replace
from pathlib import Path

from data_plane.adapters.revision import Tier
from data_plane.engine.assemble import build_engine
from data_plane.engine.events import Load, Pin
from tests.data_plane.fakes import Bench, Clock, source
from tests.data_plane.world import World, source_of, tiny_config


def loaded(num_adapters: int) -> Bench:
    bench = Bench(max_cpu_loras=num_adapters, cpu_cache_bytes=10**9, clock=Clock(tick_s=0.001))
    for number in range(num_adapters):
        bench.engine.command(Load(source(f"adapter{number}")))
        if number % 100 == 99:
            bench.run()
    bench.run()
    return bench


def test_a_status_shows_every_change_since_the_last():
    bench = loaded(3)
    first = bench.held()
    assert [held.tier for held in first.values()] == [Tier.CPU] * 3
    digest = source("adapter1").revision.digest
    bench.add("a", adapter=source("adapter1"))
    bench.step(3)
    assert (bench.held()[digest].leases, bench.held()[digest].tier) == (1, Tier.SLOT)
    bench.run()
    bench.engine.command(Pin(digest, Tier.CPU))
    bench.step()
    held = bench.held()[digest]
    assert (held.leases, held.pinned) == (0, True)
    assert held.used_s > first[digest].used_s
    unchanged = source("adapter0").revision.digest
    assert bench.held()[unchanged] is first[unchanged], "what did not change is not described again"


def test_while_nothing_changes_the_adapters_are_the_same_tuple():
    bench = loaded(3)
    first = bench.engine.status().adapters
    assert bench.engine.status().adapters is first
    bench.engine.command(Pin(source("adapter1").revision.digest, Tier.CPU))
    bench.step()
    assert bench.engine.status().adapters is not first


def test_bytes_on_disk_are_shown_and_an_eviction_by_another_adapter_is_too(world: World, tmp_path: Path):
    adapters = [world.adapters["wide"], world.adapters["narrow"]]
    sizes = [sum(file.stat().st_size for file in _files(adapter)) for adapter in adapters]
    config = tiny_config(
        world.base, world.root, disk_cache_dir=tmp_path, disk_cache_bytes=max(sizes), max_cpu_loras=3
    )
    landed = replace(world.runtime.reader, roots=(tmp_path,))
    engine = build_engine(replace(world.runtime, landed=landed), config)
    arrived = threading.Event()
    engine.on_loaded(arrived.set)
    shown = []
    for adapter in adapters:
        done = engine.command(Load(source_of(adapter)))
        engine.step()
        while not done.done():
            assert arrived.wait(20)
            arrived.clear()
            engine.step()
        shown.append({held.revision.name: held.disk_bytes for held in engine.status().adapters})
    engine.close()
    assert shown == [{"wide": sizes[0]}, {"wide": 0, "narrow": sizes[1]}]


def test_status_is_cheap_for_thousands_of_adapters():
    bench = loaded(2000)
    full_s = _seconds(bench)
    again_s = min(_seconds(bench) for _ in range(5))
    assert len(bench.engine.status().adapters) == 2000
    assert again_s < full_s / 3
    print(f"status of 2,000 held adapters: first {full_s * 1e3:.2f} ms, then {again_s * 1e3:.2f} ms")


def _seconds(bench: Bench) -> float:
    begun_s = time.perf_counter()
    bench.engine.status()
    return time.perf_counter() - begun_s


def _files(adapter: Path) -> list[Path]:
    return [adapter / name for name in ("adapter_config.json", "adapter_model.safetensors")]
