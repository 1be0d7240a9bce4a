from itertools import count

import pytest

from data_plane.adapters.revision import Tier
from data_plane.api.tally import Tally
from data_plane.direct import DirectUsage
from data_plane.engine.events import Delta, Failed, Finished, Started
from data_plane.errors import DeadlineExceeded, InvalidRequest, RequestCancelled, WorkerError


def started(tier: Tier | None) -> Started:
    return Started(request_id="r", revision=None, tier=tier, load_s=0.0, queue_s=0.0)


def test_before_it_has_started_nothing_was_used():
    assert Tally().usage == DirectUsage()


def test_a_request_that_is_left_used_what_came_until_then():
    tally = Tally(clock=lambda: 7.0)
    for event in (started(Tier.SOURCE), *[Delta(request_id="r", index=0, text="", token_ids=(1, 2))] * 2):
        tally.read(event, 9)
    assert tally.usage == DirectUsage(prompt_tokens=9, completion_tokens=4, cold=True, first_token_s=0.0)


def test_the_end_says_what_was_used():
    tally = Tally()
    tally.read(started(Tier.SLOT), 9)
    tally.read(Finished(request_id="r", choices=(), prompt_tokens=9, cached_tokens=3, completion_tokens=5), 9)
    assert tally.usage == DirectUsage(prompt_tokens=9, completion_tokens=5, cold=False)


def test_the_first_token_is_timed_from_the_arrival_without_the_load():
    ticks = count(10.0)  # a second each look
    tally = Tally(clock=lambda: next(ticks))
    tally.read(Started(request_id="r", revision=None, tier=Tier.SOURCE, load_s=0.25, queue_s=0.0), 9)
    for _ in range(2):
        tally.read(Delta(request_id="r", index=0, text="", token_ids=(1,)), 9)
    assert tally.usage.first_token_s == 0.75


@pytest.mark.parametrize(
    ("error", "failed"),
    [
        (WorkerError("the step failed"), True),
        (RequestCancelled("left"), False),
        (InvalidRequest("seed", 1, "is odd"), False),
    ],
)
def test_a_request_has_failed_unless_its_client_is_why(error: WorkerError, failed: bool):
    tally = Tally()
    tally.read(Failed(request_id="r", error=error), 9)
    assert tally.usage.failed is failed


@pytest.mark.parametrize("has_a_token", [False, True])
def test_a_deadline_is_the_revisions_failure_until_the_first_token(has_a_token: bool):
    tally = Tally()
    if has_a_token:
        tally.read(Delta(request_id="r", index=0, text="", token_ids=(1,)), 9)
    tally.read(Failed(request_id="r", error=DeadlineExceeded("too late")), 9)
    assert tally.usage.failed is not has_a_token
