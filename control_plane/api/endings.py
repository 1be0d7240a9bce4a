"""Endings: how a relayed generation went, for the trial that its revision may be on.

Knows statuses and clocks, not streams. Invariant: what clients bring about themselves is no failure of
the revision they got; that they waited in vain for a first token is.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from control_plane.api.calls import Call
from control_plane.api.meter import Meter
from control_plane.errors import NoWorker
from control_plane.registry.trials import Ending, Trials
from control_plane.registry.types import Target

CALLERS_FAULT = frozenset({grpc.StatusCode.CANCELLED, grpc.StatusCode.INVALID_ARGUMENT})
# After a token they say that the client asked for much or read slowly. Before it: a revision that hangs
# or finds no room looks like this. A busy worker does too, but not to one side of a trial only.
ONLY_BEFORE_A_TOKEN = frozenset({grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED})


@contextmanager
def noted(trials: Trials, target: Target, meter: Meter, call: Call) -> Iterator[None]:
    """Note how the generation of the block ended."""
    failed = False
    try:
        yield
    except (asyncio.CancelledError, GeneratorExit):
        # A deadline of the client cancels its call, as leaving does.
        failed = meter.first_token_s is None and call.is_overdue()
        raise
    except (NoWorker, grpc.aio.AioRpcError) as error:
        failed = _is_revisions(error, meter)
        raise
    finally:
        trials.note(target, Ending(failed, meter.first_token_s))


def _is_revisions(error: NoWorker | grpc.aio.AioRpcError, meter: Meter) -> bool:
    if isinstance(error, NoWorker):
        return True
    if error.code() in ONLY_BEFORE_A_TOKEN:
        return meter.first_token_s is None
    return error.code() not in CALLERS_FAULT
