"""A small model of quotas in Python: one tenant, its limits and those of one of its adapters.

Redis' clock cannot be set, so a level is known as a range: `low` as if nothing ever refilled, `high` with
more than can have. An admission may need `high`, a refusal must hold at `low`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from control_plane.quotas.types import Limits

MOST_A_MINUTE = 200  # of any limit here: a bucket refills by the limit that holds when it is read
FORGOTTEN_S = 0.9  # a full bucket's key expires after a second, and a larger limit then finds more in it


@dataclass
class Bucket:
    """What is left of one rate."""

    low: float | None = None  # None: never charged, so full whatever the limit
    high: float = 0.0
    written_s: float = 0.0

    def read(self, most: int, now_s: float) -> tuple[float, float]:
        if self.low is None:
            return most, most
        elapsed_s = now_s - self.written_s
        high = self.high + MOST_A_MINUTE * elapsed_s / 60 if elapsed_s < FORGOTTEN_S else most
        return min(most, self.low), min(most, high)

    def change(self, most: int, before_s: float, now_s: float, change: Callable[[float], float]) -> None:
        low, high = self.read(most, now_s)
        self.low, self.high, self.written_s = change(low), change(high), before_s


@dataclass
class Scope:
    """A tenant, or one adapter of it."""

    limits: Limits = field(default_factory=Limits)
    buckets: dict[str, Bucket] = field(
        default_factory=lambda: {"requests_per_minute": Bucket(), "tokens_per_minute": Bucket()}
    )
    inflight: set[str] = field(default_factory=set)

    def admits(self, tokens: int, now_s: float) -> tuple[bool, bool]:
        """Whether it must admit a request (as if nothing had refilled), and whether it may."""
        most = self.limits.concurrent_requests
        if most is not None and len(self.inflight) >= most:
            return False, False
        must = may = True
        for name, amount in (("requests_per_minute", 1), ("tokens_per_minute", tokens)):
            if (n := getattr(self.limits, name)) is not None:
                low, high = self.buckets[name].read(n, now_s)
                must, may = must and n > 0 and low >= amount, may and n > 0 and high >= amount
        return must, may

    def charge(self, name: str, amount: int, before_s: float, now_s: float) -> bool:
        n = getattr(self.limits, name)
        if n is not None:
            self.buckets[name].change(n, before_s, now_s, lambda level: level - amount)
        return n is not None

    def refund(self, amount: int, before_s: float, now_s: float) -> None:
        """What was reserved too much; below 0: a debt, of a minute's worth at most."""
        n = self.limits.tokens_per_minute
        if n and amount:
            self.buckets["tokens_per_minute"].change(
                n, before_s, now_s, lambda level: max(-n, min(n, level + amount))
            )


@dataclass
class Request:
    """A request that was admitted and has neither ended nor expired."""

    tokens: int
    scopes: list[Scope]
    charged: list[bool]  # tokens, by scope


@dataclass
class Tenant:
    """Everything of one tenant."""

    own: Scope = field(default_factory=Scope)
    of_adapter: Scope = field(default_factory=Scope)
    living: dict[str, Request] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)
    requests: int = 0
    used: int = 0

    def scopes(self, adapter: str) -> list[Scope]:
        return [self.own, self.of_adapter] if adapter else [self.own]

    def admits(self, tokens: int, adapter: str, now_s: float) -> tuple[bool, bool]:
        answers = [scope.admits(tokens, now_s) for scope in self.scopes(adapter)]
        return all(must for must, _ in answers), all(may for _, may in answers)

    def reserve(self, request_id: str, tokens: int, adapter: str, before_s: float, now_s: float) -> None:
        scopes, charged = self.scopes(adapter), []
        for scope in scopes:
            scope.charge("requests_per_minute", 1, before_s, now_s)
            charged.append(scope.charge("tokens_per_minute", tokens, before_s, now_s))
            scope.inflight.add(request_id)
        self.living[request_id] = Request(tokens, scopes, charged)
        self.requests += 1

    def expire(self, request_id: str) -> None:
        for scope in self.living.pop(request_id).scopes:
            scope.inflight.discard(request_id)

    def settle(self, request_id: str, used: int, before_s: float, now_s: float) -> bool:
        """End a request; False when it has ended before. One that has expired gets nothing back."""
        if request_id in self.ended:
            return False
        if request_id in self.living:
            request = self.living[request_id]
            for scope, charged in zip(request.scopes, request.charged, strict=True):
                if charged:
                    scope.refund(request.tokens - used, before_s, now_s)
            self.expire(request_id)
        self.ended.add(request_id)
        self.used += used
        return True
