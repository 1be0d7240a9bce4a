"""A carried call: what is put in comes out, in order and whole, whoever is first."""

import asyncio
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.api.carried_call import MAX_WAITING_BYTES, CarriedCall
from control_plane.errors import ClientBehind, NoWorker


async def read(call: CarriedCall) -> list[bytes]:
    read = []
    while messages := await call.take():
        read += messages
    return read


async def test_what_has_gathered_is_taken_at_once():
    call = CarriedCall()
    for message in (b"a", b"b", b"c"):
        call.put(message)
    assert await call.take() == [b"a", b"b", b"c"]


async def test_messages_come_before_the_error_that_came_after_them():
    call = CarriedCall()
    call.put(b"a")
    call.end(NoWorker("gone"))
    assert await call.take() == [b"a"]
    with pytest.raises(NoWorker):
        await call.take()


async def test_the_first_end_counts():
    call = CarriedCall()
    call.end()
    call.end(NoWorker("gone"))
    call.put(b"late")
    assert await call.take() == []


async def test_a_client_that_does_not_read_has_no_more_than_the_bound_waiting():
    call = CarriedCall()
    message = bytes(1 << 20)
    for _ in range(2 * MAX_WAITING_BYTES // len(message)):
        call.put(message)
    with pytest.raises(ClientBehind):
        await call.take()


async def test_a_client_that_reads_may_get_more_than_the_bound():
    call, message = CarriedCall(), bytes(1 << 20)
    for _ in range(2 * MAX_WAITING_BYTES // len(message)):
        call.put(message)
        assert await call.take() == [message]


@given(st.lists(st.sampled_from(["put", "wait"]), max_size=40), st.booleans())
def test_nothing_is_lost_doubled_or_turned_around(steps: list[str], fails: bool):
    async def scenario() -> None:
        call, numbers = CarriedCall(), count()
        reading = asyncio.create_task(read(call))
        sent = []
        for step in steps:
            if step == "put":
                sent.append(str(next(numbers)).encode())
                call.put(sent[-1])
            else:
                await asyncio.sleep(0)  # the reader's turn
        call.end(NoWorker("gone") if fails else None)
        if fails:
            with pytest.raises(NoWorker):
                await reading
        else:
            assert await reading == sent

    asyncio.run(scenario())
