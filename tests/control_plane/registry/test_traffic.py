"""Which revision a request gets, and what is left of each decision about it."""

from collections import Counter
from pathlib import Path

import pytest
from redis.asyncio import Redis

from control_plane.errors import InvalidArgument, NotFound, Refused
from control_plane.registry.canary import Arm, verdict
from control_plane.registry.service import Registry
from control_plane.registry.traffic import choose, served
from control_plane.registry.trials import Ending, Trials
from control_plane.registry.types import Adapter, AdapterKey, Canary, DecisionKind, NewAdapter, TrafficWeight
from tests.control_plane.adapter_files import write_adapter
from tests.control_plane.placement.examples import adapter

BOT = AdapterKey("acme", "bot")
CANARY = Canary(revision=2, percent=50, min_requests=5)
KEYS = [f"user-{number}" for number in range(4000)]


def split(*weights: tuple[int, int]) -> Adapter:
    return adapter("bot", current=3, traffic=tuple(TrafficWeight(*weight) for weight in weights))


def test_without_weights_every_key_gets_the_current_revision():
    assert {choose(adapter("bot", current=2), key) for key in KEYS[:50]} == {2}


def test_keys_are_divided_as_the_weights_say():
    counts = Counter(choose(split((1, 1), (2, 3), (3, 0)), key) for key in KEYS)
    assert set(counts) == {1, 2}
    assert counts[2] / len(KEYS) == pytest.approx(0.75, abs=0.03)


def test_a_larger_weight_only_moves_keys_to_its_revision():
    before, after = split((1, 50), (2, 50)), split((1, 50), (2, 70))
    moves = Counter((choose(before, key), choose(after, key)) for key in KEYS)
    assert moves[2, 1] == 0
    assert moves[1, 2] > 0


def test_served_are_the_current_revision_and_those_with_weight():
    assert [one.number for one in served(split((1, 1), (2, 0)))] == [3, 1]


def arm(requests: int, failed: int = 0, first_token_s: float = 0.1) -> Arm:
    return Arm(
        requests=requests, failed=failed, first_tokens=requests, first_token_sum_s=requests * first_token_s
    )


@pytest.mark.parametrize(
    ("stable", "trial", "ends"),
    [
        (arm(50), arm(4, failed=4), False),  # too few to tell
        (arm(50), arm(50, failed=2), False),
        (arm(50), arm(50, failed=3), True),
        (arm(50, failed=10), arm(50, failed=12), False),  # everything fails
        (arm(50), arm(50, first_token_s=0.19), False),
        (arm(50), arm(50, first_token_s=0.21), True),
        (arm(2), arm(50, first_token_s=9.0), False),  # nothing to compare with
        (Arm(), arm(50, failed=3), True),
    ],
)
def test_a_canary_ends_when_it_fails_or_is_slow_beside_the_stable_revision(stable, trial, ends):
    assert (verdict(CANARY, stable, trial) is not None) == ends


async def registered(registry: Registry, root: Path, revisions: int = 2) -> Adapter:
    await registry.register(NewAdapter(key=BOT, source=str(write_adapter(root / "1", fill=1.0))))
    for number in range(2, revisions + 1):
        source = str(write_adapter(root / str(number), fill=float(number)))
        await registry.publish(BOT, source, keep_current=True)
    return await registry.get(BOT)


async def test_a_revision_published_beside_the_current_one_gets_no_requests(
    registry: Registry, root: Path
) -> None:
    bot = await registered(registry, root)
    assert (bot.current_revision, len(bot.revisions)) == (1, 2)
    target = await registry.resolve("acme", "bot", {"m"}, "anybody")
    assert target.revision is not None
    assert target.revision.number == 1
    named = await registry.resolve("acme", "bot@2", {"m"}, "anybody")
    assert named.revision is not None
    assert named.revision.number == 2


async def test_weights_divide_callers_and_the_same_caller_stays(registry: Registry, root: Path) -> None:
    await registered(registry, root)
    bot = await registry.set_traffic(BOT, (TrafficWeight(1, 50), TrafficWeight(2, 50)))
    assert [one.kind for one in bot.decisions] == [DecisionKind.TRAFFIC_SET]

    async def of(caller: str) -> int:
        revision = (await registry.resolve("acme", "bot", {"m"}, caller)).revision
        assert revision is not None
        return revision.number

    first = {caller: await of(caller) for caller in KEYS[:40]}
    assert set(first.values()) == {1, 2}
    assert first == {caller: await of(caller) for caller in KEYS[:40]}


async def test_publishing_gives_all_traffic_to_the_new_revision_and_says_so(
    registry: Registry, root: Path
) -> None:
    await registered(registry, root)
    await registry.set_traffic(BOT, (TrafficWeight(1, 1), TrafficWeight(2, 1)))
    bot = await registry.publish(BOT, str(write_adapter(root / "3", fill=3.0)))
    assert (bot.traffic, bot.current_revision) == ((), 3)
    assert bot.decisions[-1].reason == "revision 3 was published"


async def test_revisions_with_traffic_are_never_dropped(registry: Registry, root: Path) -> None:
    await registered(registry, root)
    await registry.set_traffic(BOT, (TrafficWeight(2, 1),))
    bot = await registered_more(registry, root, 20)
    assert len(bot.revisions) == 16
    assert {1, 2, 22} <= {revision.number for revision in bot.revisions}


async def registered_more(registry: Registry, root: Path, count: int) -> Adapter:
    for number in range(count):
        source = str(write_adapter(root / f"more-{number}", fill=100.0 + number))
        await registry.publish(BOT, source, keep_current=True)
    return await registry.get(BOT)


@pytest.mark.parametrize(
    ("shares", "error"),
    [
        ((TrafficWeight(7, 1),), NotFound),
        ((TrafficWeight(1, 0),), InvalidArgument),
        ((TrafficWeight(1, 1), TrafficWeight(1, 2)), InvalidArgument),
    ],
)
async def test_weights_that_make_no_sense_are_refused(
    registry: Registry, root: Path, shares: tuple[TrafficWeight, ...], error: type[Exception]
) -> None:
    await registered(registry, root)
    with pytest.raises(error):
        await registry.set_traffic(BOT, shares)


@pytest.mark.parametrize(
    ("canary", "error"),
    [
        (Canary(revision=1, percent=5), Refused),
        (Canary(revision=9, percent=5), NotFound),
        (Canary(revision=2, percent=0), InvalidArgument),
        (Canary(revision=2, percent=5, window_s=0), InvalidArgument),
    ],
)
async def test_a_canary_that_makes_no_sense_is_refused(
    registry: Registry, root: Path, canary: Canary, error: type[Exception]
) -> None:
    await registered(registry, root)
    with pytest.raises(error):
        await registry.start_canary(BOT, canary)


async def test_a_canary_that_is_promoted_becomes_current(registry: Registry, root: Path) -> None:
    await registered(registry, root)
    bot = await registry.start_canary(BOT, Canary(revision=0, percent=10))
    assert bot.traffic == (TrafficWeight(1, 90), TrafficWeight(2, 10))
    bot = await registry.end_canary(BOT, promote=True)
    assert (bot.current_revision, bot.traffic, bot.canary) == (2, (), None)
    assert [one.kind for one in bot.decisions] == [DecisionKind.CANARY_STARTED, DecisionKind.CANARY_PROMOTED]
    with pytest.raises(NotFound):
        await registry.end_canary(BOT, promote=False)


async def test_a_failing_canary_is_rolled_back_once_whichever_replica_sees_it(
    redis: Redis, registry: Registry, root: Path
) -> None:
    await registered(registry, root)
    await registry.start_canary(BOT, CANARY)
    replicas = [Trials(redis, registry) for _ in range(2)]
    for number in range(10):
        for revision, failed in ((1, False), (2, True)):
            target = await registry.resolve("acme", f"bot@{revision}", {"m"})
            await replicas[number % 2].record(target, Ending(failed, 0.1))
    bot = await registry.get(BOT)
    assert (bot.current_revision, bot.traffic, bot.canary) == (1, (), None)
    assert [one.kind for one in bot.decisions] == [
        DecisionKind.CANARY_STARTED,
        DecisionKind.CANARY_ROLLED_BACK,
    ]
    assert "5 of 5" in bot.decisions[-1].reason


async def test_a_slow_canary_is_rolled_back_and_the_next_one_starts_from_nothing(
    redis: Redis, registry: Registry, root: Path
) -> None:
    await registered(registry, root)
    trials = Trials(redis, registry)
    for _ in range(2):
        await registry.start_canary(BOT, CANARY)
        for number in range(6):
            assert (await registry.get(BOT)).canary is not None or number >= 5
            for revision, first_token_s in ((1, 0.1), (2, 0.3)):
                target = await registry.resolve("acme", f"bot@{revision}", {"m"})
                await trials.record(target, Ending(False, first_token_s))
        assert (await registry.get(BOT)).decisions[-1].kind is DecisionKind.CANARY_ROLLED_BACK


async def test_a_canary_that_is_as_good_goes_on(redis: Redis, registry: Registry, root: Path) -> None:
    await registered(registry, root)
    await registry.start_canary(BOT, CANARY)
    trials = Trials(redis, registry)
    for _ in range(12):
        for revision in (1, 2):
            target = await registry.resolve("acme", f"bot@{revision}", {"m"})
            await trials.record(target, Ending(False, 0.1))
    assert (await registry.get(BOT)).canary is not None
