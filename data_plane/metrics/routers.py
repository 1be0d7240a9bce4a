"""Routers: the metrics by which the ecosystem's routers choose a worker, under the names they read.

Names and labels are vLLM's, which the model server protocol of the Gateway API inference extension
and others scrape (`vllm:lora_requests_info`: names of the adapters with running and with waiting
requests, separated by commas, and how many fit in one step; its value is the time of the scrape).
Adapters are named `tenant/name`, as a request of any tenant may name them.
"""

from collections.abc import Callable, Iterable

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from data_plane.engine.events import EngineStatus
from data_plane.metrics.engine import Capacities
from data_plane.metrics.requests import AdapterRequests


class RouterCollector(Collector):
    """Load, cache use and adapters as routers read them."""

    def __init__(
        self,
        status: Callable[[], EngineStatus],
        requests: AdapterRequests,
        capacities: Capacities,
        *,
        model: str,
        block_size: int,
        now: Callable[[], float],
    ) -> None:
        self._status = status
        self._requests = requests
        self._capacities = capacities
        self._model = model
        self._block_size = block_size
        self._now = now  # Unix time

    def collect(self) -> Iterable[Metric]:
        """Called by a scrape, on its own thread."""
        status, blocks = self._status(), self._capacities.kv_blocks
        yield self._of_model("vllm:num_requests_running", "Requests that run", status.running_requests)
        yield self._of_model("vllm:num_requests_waiting", "Requests that wait", status.waiting_requests)
        used = 1 - status.free_blocks / blocks if blocks else 0.0
        yield self._of_model("vllm:kv_cache_usage_perc", "Share of KV blocks taken; 1: all", used)
        cache = GaugeMetricFamily(
            "vllm:cache_config_info", "The KV cache", labels=("block_size", "num_gpu_blocks")
        )
        cache.add_metric((str(self._block_size), str(blocks)), 1)
        yield cache
        yield self._adapters()

    def _adapters(self) -> Metric:
        waiting, running = self._requests.now()
        info = GaugeMetricFamily(
            "vllm:lora_requests_info",
            "Adapters with requests",
            labels=("max_lora", "waiting_lora_adapters", "running_lora_adapters"),
        )
        names = (str(self._capacities.slots), ",".join(sorted(waiting)), ",".join(sorted(running)))
        info.add_metric(names, self._now())
        return info

    def _of_model(self, name: str, meaning: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, meaning, labels=("model_name",))
        family.add_metric((self._model,), value)
        return family
