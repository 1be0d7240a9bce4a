"""When a draining worker has nothing left that others need."""

from dataclasses import replace

import pytest

from control_plane.placement.hand_over import is_handed_over
from control_plane.workers.types import WorkerState, WorkerStatus
from tests.control_plane.placement.examples import held, worker

OLD = worker("old", held("bot"), state=WorkerState.DRAINING)


def test_what_an_heir_has_in_memory_is_handed_over() -> None:
    assert is_handed_over(OLD, [OLD, worker("heir", held("bot"))])


def test_what_no_heir_has_is_not() -> None:
    assert not is_handed_over(OLD, [OLD, worker("heir", held("other"))])


@pytest.mark.parametrize("state", [WorkerState.CORDONED, WorkerState.DRAINING, WorkerState.LOST])
def test_a_worker_that_takes_no_adapters_is_no_heir(state: WorkerState) -> None:
    assert is_handed_over(OLD, [OLD, worker("other", state=state)])


@pytest.mark.parametrize("busy", [WorkerStatus(running_requests=1), WorkerStatus(waiting_requests=1)])
def test_a_worker_with_requests_has_not_finished(busy: WorkerStatus) -> None:
    assert not is_handed_over(replace(OLD, status=busy), [OLD])
