"""Threads: where one resolver's blocking calls run.

Each resolver has a few of its own: calls that hang (a dead network disk) take these and no others, and
the rest of the process keeps the event loop's.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

NUM_THREADS = 4


class Threads:
    """A bounded pool, started by its first call."""

    def __init__(self, name: str, num_threads: int = NUM_THREADS) -> None:
        self._executor = ThreadPoolExecutor(num_threads, thread_name_prefix=f"resolver-{name}")

    async def run(self, call: Callable[[], T]) -> T:
        """Return what the call returns; a caller that gives up leaves it running."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)

    def close(self) -> None:
        """Begin no more calls; those that run are not waited for."""
        self._executor.shutdown(wait=False, cancel_futures=True)
