"""Rates of calls at a server, and their ratios over rounds in which both sides take turns."""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

NUM_ROUNDS = 5

Rate = Callable[[], Awaitable[float]]


async def rate(call: Callable[[int], Awaitable[Any]], callers: int, calls: int) -> float:
    """Calls a second of so many callers at once, of so many calls each."""

    async def caller(number: int) -> None:
        for turn in range(calls):
            await call(number * calls + turn)

    began_s = time.perf_counter()
    await asyncio.gather(*(caller(number) for number in range(callers)))
    return callers * calls / (time.perf_counter() - began_s)


async def interleaved(one: Rate, other: Rate) -> float:
    """Median of the ratios of rounds, every other one backwards, after an uncounted one."""
    ratios = []
    for round_ in range(NUM_ROUNDS + 1):
        if round_ % 2:
            second, first = await other(), await one()
        else:
            first, second = await one(), await other()
        ratios.append(first / second)
    return statistics.median(ratios[1:])
