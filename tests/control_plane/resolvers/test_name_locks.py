"""Locks by name: exclusive, and gone with their last user."""

import asyncio

import pytest

from control_plane.resolvers.name_locks import NameLocks


async def test_one_name_is_held_by_one_at_a_time() -> None:
    locks, inside, most = NameLocks(), 0, 0

    async def use() -> None:
        nonlocal inside, most
        async with locks.hold("bot"):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1

    await asyncio.gather(*(use() for _ in range(20)))
    assert most == 1


async def test_a_lock_is_gone_with_its_last_user() -> None:
    locks = NameLocks()
    async with locks.hold("bot"), locks.hold("other"):
        assert len(locks) == 2
    assert len(locks) == 0


async def test_neither_an_error_nor_a_cancelled_waiter_leaves_a_lock() -> None:
    locks = NameLocks()

    async def fail_with_a_waiter() -> None:
        async with locks.hold("bot"):
            waiter = asyncio.create_task(locks.hold("bot").__aenter__())
            await asyncio.sleep(0)
            waiter.cancel()
            await asyncio.gather(waiter, return_exceptions=True)
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        await fail_with_a_waiter()
    assert len(locks) == 0
