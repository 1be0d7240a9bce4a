"""Loads wait while workers join one after another, and not for ever."""

from pathlib import Path

from redis.asyncio import Redis

from control_plane.placement.holders import Pair
from control_plane.registry.types import AdapterKey
from control_plane.workers.settling import MOST_S, QUIET_S, Settling
from protos.registry.v1 import registry_pb2 as pb
from tests.control_plane.adapter_files import write_adapter
from tests.control_plane.replica import eventually, ready, replica

PAIR: Pair = ("w", AdapterKey("acme", "bot"))


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_load_goes_on_once_nobody_has_come_for_a_moment():
    clock = Clock()
    settling = Settling(clock)
    assert not settling.holds_back
    settling.joined()
    settling.wait(PAIR)
    clock.now_s += QUIET_S / 2
    assert settling.release() is None
    settling.joined()
    clock.now_s += QUIET_S * 0.9
    assert settling.holds_back
    clock.now_s = settling.next_s or 0.0
    assert (settling.release(), settling.release(), settling.next_s) == (PAIR, None, None)


def test_a_load_waits_for_so_long_at_most_however_many_come():
    clock = Clock()
    settling = Settling(clock)
    held_back_s = 0.0
    settling.joined()
    while settling.holds_back:
        clock.now_s += QUIET_S / 4
        held_back_s += QUIET_S / 4
        if settling.holds_back:
            settling.joined()
    assert MOST_S <= held_back_s <= MOST_S + QUIET_S


async def test_workers_that_join_one_after_another_get_each_adapter_once(
    redis: Redis, tmp_path: Path
) -> None:
    async with replica(redis, tmp_path, num_holders=1) as control:
        for number in range(20):
            source = str(write_adapter(tmp_path / "acme" / f"bot-{number}", fill=float(number)))
            message = pb.RegisterAdapterRequest(name=f"bot-{number}", source=source)
            await control.registry.RegisterAdapter(message, metadata=control.as_("acme"))
        async with (
            control.worker("a").run() as one,
            control.worker("b").run() as two,
            control.worker("c").run() as three,
        ):
            await ready(control, "a", "b", "c")
            workers = (one, two, three)
            await eventually(lambda: len({digest for each in workers for digest in each.held}) == 20)
            assert sum(len(each.commands) for each in workers) == 20
