"""What a request's events become, with a clock that the test moves."""

import pytest
from prometheus_client import CollectorRegistry

from data_plane.adapters.revision import Tier
from data_plane.engine.events import Delta, Failed, Finished, GenerationRequest, Started
from data_plane.errors import RequestCancelled, WorkerError
from data_plane.metrics.requests import RequestMetrics
from data_plane.scheduler.sampling import SamplingParams
from tests.data_plane.fakes import source


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry, clock: Clock) -> RequestMetrics:
    return RequestMetrics(registry, clock)


def request(name: str | None = "bot") -> GenerationRequest:
    return GenerationRequest(
        request_id="r", prompt_ids=(1, 2), sampling=SamplingParams(), adapter=source(name) if name else None
    )


def delta(index: int = 0, tokens: int = 1) -> Delta:
    return Delta(request_id="r", index=index, text="x", token_ids=(7,) * tokens)


STARTED = Started(request_id="r", revision=None, tier=Tier.CPU, load_s=0.2, queue_s=0.5)
FINISHED = Finished(request_id="r", choices=(), prompt_tokens=5, cached_tokens=3, completion_tokens=4)


def test_a_request_gives_its_delays_tokens_and_tier(registry, metrics, clock) -> None:
    watch = metrics.begin(request())
    clock.now_s += 2
    for event in (STARTED, delta(index=0, tokens=2), delta(index=1)):
        watch.see(event)
    clock.now_s += 0.25
    for event in (delta(index=0), delta(index=1), FINISHED):
        watch.see(event)
    watch.end()
    expected = {
        "loraplane_queue_seconds_sum": 0.5,
        "loraplane_time_to_first_token_seconds_sum": 2,
        "loraplane_time_to_first_token_seconds_count": 1,
        "loraplane_inter_token_seconds_sum": 0.5,
        "loraplane_inter_token_seconds_count": 2,  # choices are apart
        "loraplane_completion_tokens_total": 5,
        "loraplane_prompt_tokens_total": 5,
        "loraplane_cached_prompt_tokens_total": 3,
    }
    assert {name: registry.get_sample_value(name) for name in expected} == expected
    assert registry.get_sample_value("loraplane_adapter_lookups_total", {"tier": "cpu"}) == 1
    assert registry.get_sample_value("loraplane_requests_total", {"outcome": "finished"}) == 1


@pytest.mark.parametrize(
    ("events", "outcome"),
    [
        ((), "cancelled"),
        ((STARTED, delta()), "cancelled"),
        ((Failed(request_id="r", error=RequestCancelled("left")),), "cancelled"),
        ((STARTED, Failed(request_id="r", error=WorkerError("broken"))), "failed"),
    ],
)
def test_however_a_request_ends_it_is_counted_and_leaves_nobody_waiting(
    registry, metrics, events, outcome
) -> None:
    watch = metrics.begin(request())
    for event in events:
        watch.see(event)
    watch.end()
    assert registry.get_sample_value("loraplane_requests_total", {"outcome": outcome}) == 1
    assert metrics.by_adapter.now() == ({}, {})


def test_adapters_wait_until_they_start_and_the_base_model_is_none(metrics) -> None:
    first, second, base = (metrics.begin(request(name)) for name in ("bot", "bot", None))
    assert metrics.by_adapter.now() == ({"acme/bot": 2}, {})
    first.see(STARTED)
    assert metrics.by_adapter.now() == ({"acme/bot": 1}, {"acme/bot": 1})
    for watch in (first, second, base):
        watch.end()
    assert metrics.by_adapter.now() == ({}, {})
