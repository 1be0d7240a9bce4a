"""Calls: how many of each method, how they ended, how long they took, and which limits refused them.

Told by the interceptor and by the accounts of requests, on the event loop; a few microseconds a call.
Nobody without a key has a tenant, so callers cannot make labels up.
"""

from prometheus_client import CollectorRegistry, Counter, Histogram

from control_plane.errors import QuotaExceeded

_CALLS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 300)
_WAITS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class CallMetrics:
    """The metrics of all calls of this replica."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "loraplane_call_seconds",
            "Calls by method and status, streams to their end",
            ["method", "code"],
            buckets=_CALLS_S,
            registry=registry,
        )
        self._rejected = Counter(
            "loraplane_quota_rejections",
            "Calls over a limit",
            ["tenant", "limit"],
            registry=registry,
        )
        self._settled = Counter(
            "loraplane_settled_requests", "Inference requests that ended", ["tenant"], registry=registry
        )
        self._tokens = Counter(
            "loraplane_settled_tokens", "Tokens that they used", ["tenant", "kind"], registry=registry
        )
        self._first_token_s = Histogram(
            "loraplane_relay_first_token_seconds",
            "From the client's call to the first token, without the loading of an adapter",
            buckets=_WAITS_S,
            registry=registry,
        )

    def finished(self, method: str, code: str, elapsed_s: float) -> None:
        """A call has ended."""
        self._seconds.labels(method, code).observe(elapsed_s)

    def refused(self, error: QuotaExceeded) -> None:
        """A limit refused a call."""
        self._rejected.labels(error.tenant, error.limit).inc()

    def settled(self, tenant: str, prompt_tokens: int, completion_tokens: int) -> None:
        """The account of a request is closed."""
        self._settled.labels(tenant).inc()
        self._tokens.labels(tenant, "prompt").inc(prompt_tokens)
        self._tokens.labels(tenant, "completion").inc(completion_tokens)

    def first_token(self, seconds: float) -> None:
        """A relayed request got its first token."""
        self._first_token_s.observe(seconds)
