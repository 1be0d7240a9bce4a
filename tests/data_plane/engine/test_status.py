import time

from data_plane.adapters.revision import Tier
from data_plane.engine.events import Load, Pin
from tests.data_plane.fakes import Bench, Clock, source


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
