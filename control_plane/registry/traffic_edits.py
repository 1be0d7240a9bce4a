"""Traffic edits: changes of an adapter's traffic, and of the revision on trial, as pure functions.

As `registry.edits`: from the adapter to the adapter after it. Invariant: every change of who gets
which revision leaves a decision behind, with its reason.
"""

from dataclasses import replace

from control_plane.errors import InvalidArgument, NotFound, Refused
from control_plane.registry import traffic
from control_plane.registry.types import Adapter, Canary, DecisionKind, TrafficDecision, TrafficWeight

MAX_DECISIONS = 32  # kept per adapter
MAX_WEIGHT = 1_000_000
MAX_WINDOW_S = 3600.0


def with_traffic(adapter: Adapter, shares: tuple[TrafficWeight, ...], now_s: float) -> Adapter:
    """Return it with these weights (none: all to the current revision) and without a canary."""
    _check_shares(adapter, shares)
    if (adapter.traffic, adapter.canary) == (shares, None):
        return adapter
    said = ", ".join(f"{share.revision}: {share.weight}" for share in shares)
    decision = TrafficDecision(now_s, DecisionKind.TRAFFIC_SET, 0, said or "all to the current revision")
    return _decided(replace(adapter, traffic=shares, canary=None), decision)


def undivided(adapter: Adapter, now_s: float, reason: str) -> Adapter:
    """Return it with all traffic on its current revision; what was divided leaves a decision."""
    if not adapter.traffic and adapter.canary is None:
        return adapter
    kind, revision = DecisionKind.TRAFFIC_SET, 0
    if adapter.canary is not None:
        kind, revision = DecisionKind.CANARY_ENDED, adapter.canary.revision
    cleared = replace(adapter, traffic=(), canary=None)
    return _decided(cleared, TrafficDecision(now_s, kind, revision, reason))


def with_canary(adapter: Adapter, canary: Canary, now_s: float) -> Adapter:
    """Return it with a share of the traffic on trial; revision 0 is the newest."""
    canary = replace(canary, revision=canary.revision or adapter.revisions[-1].number, start_s=now_s)
    _check_canary(adapter, canary)
    shares = (
        TrafficWeight(adapter.current_revision, 100 - canary.percent),
        TrafficWeight(canary.revision, canary.percent),
    )
    reason = f"{canary.percent} % of the requests, against revision {adapter.current_revision}"
    started = TrafficDecision(now_s, DecisionKind.CANARY_STARTED, canary.revision, reason)
    return _decided(replace(adapter, traffic=shares, canary=canary), started)


def without_canary(adapter: Adapter, now_s: float, *, promote: bool) -> Adapter:
    """Return it with the canary as its current revision, or without traffic to it."""
    if adapter.canary is None:
        raise NotFound("canary", str(adapter.key), "is not under way")
    number = adapter.canary.revision
    kind = DecisionKind.CANARY_PROMOTED if promote else DecisionKind.CANARY_ENDED
    ended = replace(adapter, traffic=(), canary=None)
    if promote:
        ended = replace(ended, current_revision=number)
    return _decided(ended, TrafficDecision(now_s, kind, number, "asked for"))


def canary_rolled_back(adapter: Adapter, canary: Canary, now_s: float, reason: str) -> Adapter:
    """Return it without this very canary; one that has ended since, by whomever, changes nothing."""
    if adapter.canary != canary:
        return adapter
    decision = TrafficDecision(now_s, DecisionKind.CANARY_ROLLED_BACK, canary.revision, reason)
    return _decided(replace(adapter, traffic=(), canary=None), decision)


def _decided(adapter: Adapter, decision: TrafficDecision) -> Adapter:
    return replace(adapter, decisions=(*adapter.decisions, decision)[-MAX_DECISIONS:])


def _check_shares(adapter: Adapter, shares: tuple[TrafficWeight, ...]) -> None:
    numbers = [share.revision for share in shares]
    for share in shares:
        _check_kept(adapter, share.revision)
        if not 0 <= share.weight <= MAX_WEIGHT:
            raise InvalidArgument("traffic.weight", share.weight, f"must be between 0 and {MAX_WEIGHT}")
    if len(set(numbers)) != len(numbers):
        raise InvalidArgument("traffic.revision", numbers, "must name each revision once")
    if shares and not traffic.total(shares):
        raise InvalidArgument("traffic.weight", 0, "must be above 0 for at least one revision")


def _check_canary(adapter: Adapter, canary: Canary) -> None:
    _check_kept(adapter, canary.revision)
    if canary.revision == adapter.current_revision:
        raise Refused(f"revision {canary.revision} of adapter {str(adapter.key)!r} is the current one")
    for field, value, low, high in (
        ("percent", canary.percent, 1, 99),
        ("max_error_increase", canary.max_error_increase, 0, 1),
        ("max_first_token_ratio", canary.max_first_token_ratio, 1, 1000),
        ("window_s", canary.window_s, 1, MAX_WINDOW_S),
        ("min_requests", canary.min_requests, 1, 1_000_000),
    ):
        if not low <= value <= high:
            raise InvalidArgument(field, value, f"must be between {low} and {high:g}")


def _check_kept(adapter: Adapter, number: int) -> None:
    kept = [revision.number for revision in adapter.revisions]
    if number not in kept:
        raise NotFound("revision", f"{adapter.key}@{number}", f"is not kept (there are {kept})")
