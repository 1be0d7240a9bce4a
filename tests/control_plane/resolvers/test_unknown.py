"""What nobody knows: remembered by name, for a time, within a bound."""

from control_plane.resolvers.types import ResolveRequest
from control_plane.resolvers.unknown import Unknown


def named(name: str, source: str = "") -> ResolveRequest:
    return ResolveRequest(tenant="acme", name=name, source=source)


def test_a_name_is_remembered_until_its_time_is_over() -> None:
    now = 100.0
    unknown = Unknown(lambda: now, ttl_s=5.0, max_requests=10)
    unknown.add(named("bot"))
    assert named("bot") in unknown
    now = 105.0
    assert named("bot") not in unknown


def test_over_the_bound_the_oldest_is_forgotten() -> None:
    unknown = Unknown(lambda: 0.0, ttl_s=5.0, max_requests=2)
    for name in "abac":
        unknown.add(named(name))
    assert len(unknown) == 2
    assert [name for name in "abc" if named(name) in unknown] == ["a", "c"]


def test_a_source_is_not_remembered() -> None:
    unknown = Unknown(lambda: 0.0, ttl_s=5.0, max_requests=2)
    unknown.add(named("bot", "/adapters/bot"))
    assert len(unknown) == 0
