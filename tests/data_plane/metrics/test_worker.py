"""An engine's state as a scraper reads it over HTTP."""

import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from data_plane.adapters.pages import PageAllocator
from data_plane.errors import InvalidRequest
from data_plane.metrics.engine import Capacities
from data_plane.metrics.exporter import Exporter
from data_plane.metrics.worker import WorkerMetrics
from tests.data_plane.fakes import PAGE_BYTES, Bench, source
from tests.data_plane.metrics.test_requests import STARTED, request

CAPACITIES = Capacities(slots=2, slot_bytes=600, cpu_bytes=100_000, disk_bytes=0, kv_blocks=64)


class Scrape:
    """The samples of one answer."""

    def __init__(self, address: str) -> None:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        self.samples = [
            sample for family in text_string_to_metric_families(text) for sample in family.samples
        ]

    def value(self, name: str, **labels: str) -> float:
        [value] = [s.value for s in self.samples if s.name == name and labels.items() <= s.labels.items()]
        return value

    def labels(self, name: str) -> list[dict[str, str]]:
        return [sample.labels for sample in self.samples if sample.name == name]


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def metrics(bench: Bench) -> WorkerMetrics:
    metrics = WorkerMetrics()
    bench.engine.on_adapter_load(metrics.loads.loaded)
    metrics.read_engine(bench.engine.status, CAPACITIES, model="base", block_size=4)
    return metrics


@pytest.fixture
def address(metrics: WorkerMetrics) -> Iterator[str]:
    exporter = Exporter.start("127.0.0.1:0", metrics.registry)
    yield exporter.address
    exporter.close()


def test_a_worker_that_did_nothing_says_what_it_can_hold(address: str) -> None:
    seen = Scrape(address)
    assert seen.value("loraplane_slots") == 2
    assert seen.value("loraplane_tier_capacity_bytes", tier="slot") == 600
    assert seen.value("loraplane_adapters", tier="slot") == 0
    assert seen.value("loraplane_kv_blocks_free") == seen.value("loraplane_kv_blocks") == 64
    assert seen.value("process_start_time_seconds") > 0


def test_residency_bytes_loads_and_evictions_are_those_of_the_engine(bench: Bench, address: str) -> None:
    for name in ("a", "b", "c"):  # two slots: the first one leaves
        bench.add(name, adapter=source(name))
        bench.run()
    bench.add("running", adapter=source("c"))
    bench.step()
    seen = Scrape(address)
    assert seen.value("loraplane_adapter_bytes", adapter="c", tier="slot") == PAGE_BYTES
    assert seen.value("loraplane_adapter_bytes", adapter="a", tier="cpu") == 1000
    slots = {(one["tenant"], one["adapter"]) for one in seen.labels("loraplane_adapter_leases")}
    assert slots == {("acme", "b"), ("acme", "c")}
    assert seen.value("loraplane_adapter_leases", adapter="c", revision="1") == 1
    assert seen.value("loraplane_adapters", tier="slot") == 2
    assert seen.value("loraplane_adapters", tier="cpu") == 1
    assert seen.value("loraplane_adapter_evictions_total", tier="slot") == 1
    assert seen.value("loraplane_adapter_evictions_total", tier="cpu") == 0
    assert seen.value("loraplane_adapter_load_seconds_count", tier="source") == 3
    assert seen.value("loraplane_adapter_load_seconds_count", tier="cpu") == 3
    assert seen.value("loraplane_cold_loads_total") == 3
    assert seen.value("loraplane_tier_used_bytes", tier="slot") == 2 * PAGE_BYTES
    assert seen.value("loraplane_engine_requests", state="running") == 1
    assert seen.value("loraplane_kv_blocks_free") < 64
    assert seen.value("loraplane_computed_tokens_total") > seen.value("loraplane_steps_total") > 0


def test_an_eviction_from_ram_is_counted_there(bench: Bench, address: str) -> None:
    for number in range(6):  # four fit
        bench.add(f"r{number}", adapter=source(f"bot-{number}"))
        bench.run()
    assert Scrape(address).value("loraplane_adapter_evictions_total", tier="cpu") == 2


def test_routers_read_running_and_waiting_adapters_under_the_names_they_know(
    metrics: WorkerMetrics, bench: Bench, address: str
) -> None:
    running = metrics.requests.begin(request("b"))
    running.see(STARTED)
    for name in ("a", "c", "a"):
        metrics.requests.begin(request(name))
    bench.add("r")
    bench.step()
    seen = Scrape(address)
    assert seen.labels("vllm:lora_requests_info") == [
        {"max_lora": "2", "waiting_lora_adapters": "acme/a,acme/c", "running_lora_adapters": "acme/b"}
    ]
    assert seen.value("vllm:lora_requests_info") == pytest.approx(
        seen.value("process_start_time_seconds"), abs=3600
    )
    assert seen.value("vllm:num_requests_running", model_name="base") == 1
    assert seen.value("vllm:num_requests_waiting", model_name="base") == 0
    assert 0 < seen.value("vllm:kv_cache_usage_perc") < 0.5
    assert seen.labels("vllm:cache_config_info") == [{"block_size": "4", "num_gpu_blocks": "64"}]


def test_fragmentation_is_the_share_of_free_pages_outside_their_longest_run(bench: Bench) -> None:
    pages = PageAllocator(8)
    assert pages.fragmentation == 0
    taken = [pages.allocate(2) for _ in range(4)]
    assert pages.fragmentation == 0  # none is free
    for run in (taken[0], taken[2], taken[3]):
        assert run is not None
        pages.release(run)
    assert pages.fragmentation == pytest.approx(1 / 3)  # 0 1 . . 4 5 6 7
    assert bench.engine.status().pool_fragmentation == 0


def test_a_port_that_is_taken_is_refused_by_field_and_given_back_at_the_end(metrics: WorkerMetrics) -> None:
    first = Exporter.start("127.0.0.1:0", metrics.registry)
    with pytest.raises(InvalidRequest, match="metrics_listen"):
        Exporter.start(first.address, metrics.registry)
    first.close()
    Exporter.start(first.address, metrics.registry).close()
