from data_plane.adapters.revision import Tier
from data_plane.api.tally import Tally
from data_plane.direct import DirectUsage
from data_plane.engine.events import Delta, Finished, Started


def started(tier: Tier | None) -> Started:
    return Started(request_id="r", revision=None, tier=tier, load_s=0.0, queue_s=0.0)


def test_before_it_has_started_nothing_was_used():
    assert Tally().usage == DirectUsage()


def test_a_request_that_is_left_used_what_came_until_then():
    tally = Tally()
    for event in (started(Tier.SOURCE), *[Delta(request_id="r", index=0, text="", token_ids=(1, 2))] * 2):
        tally.read(event, 9)
    assert tally.usage == DirectUsage(prompt_tokens=9, completion_tokens=4, cold=True)


def test_the_end_says_what_was_used():
    tally = Tally()
    tally.read(started(Tier.SLOT), 9)
    tally.read(Finished(request_id="r", choices=(), prompt_tokens=9, cached_tokens=3, completion_tokens=5), 9)
    assert tally.usage == DirectUsage(prompt_tokens=9, completion_tokens=5, cold=False)
