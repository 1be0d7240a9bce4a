"""Requests: how long each waited, how fast its tokens came, what it used.

Read from the events that its stream passes on, on the event loop: about two microseconds an event,
none of them the step loop's. Also knows which adapters have requests waiting and running now.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from threading import Lock

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client import Counter as Total

from data_plane.engine.events import Delta, Event, Failed, Finished, GenerationRequest, Started
from data_plane.errors import RequestCancelled

_WAITS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TOKENS_S = (0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)


class AdapterRequests:
    """How many requests of each adapter wait and run; read by any thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._waiting: Counter[str] = Counter()
        self._running: Counter[str] = Counter()

    def now(self) -> tuple[Mapping[str, int], Mapping[str, int]]:
        """Return how many wait and how many run, by adapter."""
        with self._lock:
            return +self._waiting, +self._running

    def move(self, adapter: str, *, waiting: int = 0, running: int = 0) -> None:
        """Count requests in or out."""
        with self._lock:
            for counter, change in ((self._waiting, waiting), (self._running, running)):
                counter[adapter] += change
                if not counter[adapter]:
                    del counter[adapter]


class RequestMetrics:
    """The metrics of all requests."""

    def __init__(self, registry: CollectorRegistry, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.by_adapter = AdapterRequests()
        self.ended = Total(
            "loraplane_requests", "Requests that ended, by how", ["outcome"], registry=registry
        )
        self.queue_s = Histogram(
            "loraplane_queue_seconds", "From arrival to the first step", buckets=_WAITS_S, registry=registry
        )
        self.first_token_s = Histogram(
            "loraplane_time_to_first_token_seconds",
            "From arrival to the first token",
            buckets=_WAITS_S,
            registry=registry,
        )
        self.inter_token_s = Histogram(
            "loraplane_inter_token_seconds",
            "Between two deltas of one choice",
            buckets=_TOKENS_S,
            registry=registry,
        )
        self.prompt_tokens = Total(
            "loraplane_prompt_tokens", "Tokens of prompts of finished requests", registry=registry
        )
        self.cached_tokens = Total(
            "loraplane_cached_prompt_tokens", "Those of them found in the prefix cache", registry=registry
        )
        self.completion_tokens = Total("loraplane_completion_tokens", "New tokens", registry=registry)
        self.lookups = Total(
            "loraplane_adapter_lookups",
            "Requests by the tier their adapter was found in; slot and cpu are hits",
            ["tier"],
            registry=registry,
        )

    def begin(self, request: GenerationRequest) -> "RequestWatch":
        """Watch a request that is handed to the engine now."""
        return RequestWatch(self, request)


class RequestWatch:
    """One request, from its hand-over to its end."""

    def __init__(self, metrics: RequestMetrics, request: GenerationRequest) -> None:
        self._metrics = metrics
        source = request.adapter
        self._adapter = f"{source.revision.tenant}/{source.revision.name}" if source else ""
        self._began_s = metrics.clock()
        self._started = False
        self._last_s: dict[int, float] = {}  # by choice
        self._outcome = "cancelled"
        self._move(waiting=1)

    def see(self, event: Event) -> None:
        """Take one event of the request."""
        match event:
            case Delta():
                self._delta(event)
            case Started():
                self._start(event)
            case Finished():
                self._outcome = "finished"
                self._metrics.prompt_tokens.inc(event.prompt_tokens)
                self._metrics.cached_tokens.inc(event.cached_tokens)
            case Failed():
                self._outcome = "cancelled" if isinstance(event.error, RequestCancelled) else "failed"

    def end(self) -> None:
        """The request has ended, or its client has left."""
        self._metrics.ended.labels(self._outcome).inc()
        self._move(waiting=-int(not self._started), running=-int(self._started))

    def _start(self, event: Started) -> None:
        self._started = True
        self._move(waiting=-1, running=1)
        self._metrics.queue_s.observe(event.queue_s)
        if event.tier is not None:
            self._metrics.lookups.labels(event.tier.value).inc()

    def _delta(self, event: Delta) -> None:
        now_s = self._metrics.clock()
        last_s = self._last_s.get(event.index)
        if last_s is not None:
            self._metrics.inter_token_s.observe(now_s - last_s)
        elif not self._last_s:
            self._metrics.first_token_s.observe(now_s - self._began_s)
        self._last_s[event.index] = now_s
        self._metrics.completion_tokens.inc(len(event.token_ids))

    def _move(self, *, waiting: int = 0, running: int = 0) -> None:
        if self._adapter:
            self._metrics.by_adapter.move(self._adapter, waiting=waiting, running=running)
