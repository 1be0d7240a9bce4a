"""The page for operators names every metric that there is, and none that there is not."""

import re
from pathlib import Path

from prometheus_client import CollectorRegistry

from control_plane.metrics.calls import CallMetrics
from control_plane.metrics.fleet import FleetCollector
from data_plane.metrics.engine import Capacities
from data_plane.metrics.worker import WorkerMetrics
from tests.data_plane.fakes import Bench

PAGE = Path(__file__).parents[2] / "docs" / "operating.md"
# Said in the name of what they count: a row more would tell nobody anything.
OBVIOUS = {"loraplane_kv_blocks", "loraplane_steps_total", "loraplane_computed_tokens_total"}
CAPACITIES = Capacities(slots=1, slot_bytes=1, cpu_bytes=1, disk_bytes=1, kv_blocks=1)


def exposed(registry: CollectorRegistry) -> set[str]:
    families = [family for family in registry.collect() if family.name.startswith(("loraplane", "vllm"))]
    return {family.name + "_total" * (family.type == "counter") for family in families}


def test_every_metric_is_on_the_page_and_nothing_else() -> None:
    worker = WorkerMetrics()
    worker.read_engine(Bench().engine.status, CAPACITIES, model="m", block_size=1)
    plane = CollectorRegistry()
    CallMetrics(plane)
    plane.register(FleetCollector(list, lambda: False))
    documented = set(re.findall(r"`((?:loraplane_|vllm:)[a-z_]+)", PAGE.read_text()))
    assert documented == (exposed(worker.registry) | exposed(plane)) - OBVIOUS
