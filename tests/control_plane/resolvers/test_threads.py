"""Threads of a resolver: calls that hang are its own affair."""

import asyncio
import threading

import pytest

from control_plane.resolvers.threads import Threads


async def test_calls_that_hang_leave_the_threads_of_the_others_alone() -> None:
    hung, released = Threads("dead-disk", num_threads=1), threading.Event()
    waiting = [asyncio.create_task(hung.run(released.wait)) for _ in range(40)]
    await asyncio.sleep(0)
    assert await Threads("disk").run(lambda: "read") == "read"
    assert await asyncio.to_thread(lambda: "and so do") == "and so do"
    released.set()
    assert all(await asyncio.gather(*waiting))
    hung.close()


async def test_a_caller_that_gives_up_is_free_at_once() -> None:
    threads, released = Threads("dead-disk"), threading.Event()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await threads.run(released.wait)
    released.set()
    threads.close()
