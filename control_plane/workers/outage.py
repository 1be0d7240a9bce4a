"""Outage: what a long-lived task does while Redis is away: log once, wait, begin again.

The work itself reads everything anew at its start, so a restart of it loses nothing.
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from control_plane.errors import StaleRevision, StoreUnavailable

PAUSE_S = 0.25
OUTAGE_S = 1.0  # work that fails sooner than this after its start has not come back yet
_log = structlog.get_logger(__name__)


async def ride_out(name: str, work: Callable[[], Awaitable[None]]) -> None:
    """Do the work, and again from its start whenever it fails for lack of Redis or of history."""
    loop, failing = asyncio.get_running_loop(), False
    while True:
        began = loop.time()
        try:
            await work()
        except* (StoreUnavailable, StaleRevision) as errors:
            failing = failing and loop.time() - began < OUTAGE_S
            if not failing:  # the first failure of an outage, not each attempt
                _log.warning("interrupted", task=name, reason=str(_first(errors)))
            failing = True
        else:
            return
        _raise_if_cancelled()
        await asyncio.sleep(PAUSE_S)


def _raise_if_cancelled() -> None:
    # A task group that fails as it is cancelled raises its errors and forgets the cancellation.
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _first(errors: BaseExceptionGroup[Exception]) -> Exception:
    error: Exception | BaseExceptionGroup[Exception] = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
