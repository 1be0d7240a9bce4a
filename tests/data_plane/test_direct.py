"""What a worker tells of its direct requests: everything, until it is settled or too old."""

import asyncio

import pytest

from data_plane import direct
from data_plane.direct import DirectRequests, DirectUsage, Word

USED = DirectUsage(prompt_tokens=3, completion_tokens=4, cold=False)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def requests(clock) -> DirectRequests:
    made = DirectRequests(clock)
    made.repeat()
    return made


async def test_beginning_and_end_are_told_once_while_nothing_is_repeated(requests):
    requests.begin("r1", "grant")
    assert await requests.news() == [Word("grant")]
    requests.end("r1", USED)
    (word,) = await requests.news()
    assert (word.grant, word.usage) == ("grant", USED)


async def test_an_end_overtakes_a_beginning_that_was_not_told_yet(requests):
    requests.begin("r1", "grant")
    requests.end("r1", USED)
    assert [word.usage for word in await requests.news()] == [USED]


async def test_what_is_not_settled_comes_again_and_what_is_does_not(requests, clock):
    requests.begin("r1", "first")
    requests.begin("r2", "second")
    for request_id in ("r1", "r2"):
        requests.end(request_id, USED)
    await requests.news()
    requests.settle("r1")
    clock.now_s += direct.REPEAT_S
    assert [word.grant for word in await requests.news()] == ["second"]


async def test_a_new_stream_hears_of_what_runs_too(requests):
    requests.begin("r1", "grant")
    await requests.news()
    requests.repeat()
    assert await requests.news() == [Word("grant")]


async def test_what_is_older_than_the_control_plane_remembers_is_given_up(requests, clock):
    requests.begin("r1", "grant")
    requests.end("r1", USED)
    clock.now_s += direct.MAX_AGE_S
    requests.repeat()
    async with asyncio.timeout(1):
        await requests.idle()


async def test_no_more_than_so_many_are_kept(requests, monkeypatch):
    monkeypatch.setattr(direct, "MAX_ENDED", 2)
    for number in range(3):
        requests.begin(f"r{number}", f"g{number}")
        requests.end(f"r{number}", USED)
    assert [word.grant for word in await requests.news()] == ["g1", "g2"]


async def test_it_is_idle_when_all_is_settled(requests):
    requests.begin("r1", "grant")
    waiting = asyncio.create_task(requests.idle())
    requests.end("r1", USED)
    await asyncio.sleep(0)
    assert not waiting.done()
    requests.settle("r1")
    async with asyncio.timeout(1):
        await waiting
