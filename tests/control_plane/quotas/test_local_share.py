"""What one replica admits by itself while Redis is away."""

import pytest

from control_plane.errors import QuotaExceeded
from control_plane.quotas.local_share import LIMIT, LocalShare


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def admitted(share: LocalShare, tenant: str, count: int) -> int:
    done = 0
    for number in range(count):
        try:
            done += share.admit(tenant, f"r-{number}", 10).local
        except QuotaExceeded:
            continue
    return done


def test_each_tenant_gets_exactly_its_share_and_no_other_tenants():
    share = LocalShare(30, Clock())
    assert admitted(share, "acme", 100) == 30
    assert admitted(share, "globex", 100) == 30
    assert admitted(share, "acme", 100) == 0


def test_the_share_comes_back_with_time_and_the_refusal_says_when():
    clock = Clock()
    share = LocalShare(30, clock)
    admitted(share, "acme", 30)
    with pytest.raises(QuotaExceeded) as over:
        share.admit("acme", "r", 1)
    assert (over.value.limit, over.value.retry_after_s) == (LIMIT, pytest.approx(2.0))
    clock.now += 2.0
    assert admitted(share, "acme", 5) == 1
    clock.now += 3600
    assert admitted(share, "acme", 100) == 30
