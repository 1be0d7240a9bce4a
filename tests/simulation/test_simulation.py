"""A small fleet through its losses; the large one is a part of `make bench`."""

import pytest

from tests.simulation.fleet import NUM_HOLDERS, simulation

WORKERS, ADAPTERS = 20, 1000
LEASE_S = 10.0  # the workers share one process, which a busy machine may hold up for seconds


@pytest.mark.processes
async def test_a_fleet_converges_after_every_loss_and_planning_costs_the_same_with_twice_the_adapters() -> (
    None
):
    async with simulation(WORKERS, ADAPTERS, lease_s=LEASE_S) as (run, leader):
        print("\n".join(run.findings.lines()))
        # An adapter of the dead worker went to one other, unless that one had it from before.
        assert run.findings.worker_lost_commands <= run.findings.worker_lost_expected
        assert run.findings.worker_lost_expected < 2 * NUM_HOLDERS * ADAPTERS / WORKERS
        few = await run.change(leader)
        await run.register(ADAPTERS)
        await run.converge()
        many = await run.change(leader)
        assert few.pairs == NUM_HOLDERS * few.changes
        assert (few.changes, few.pairs, few.scores) == (many.changes, many.pairs, many.scores)
