"""What a large fleet costs the control plane: planning, messages, memory, convergence. No model.

200 simulated workers and 10,000 adapters through a cold start, a dead worker and a dead leader, on a
Valkey that does not sync. Workers share one process, so seconds are an upper bound: printed, no goal.
"""

import tracemalloc

import uvloop

from control_plane.placement.desired import Desired
from tests.control_plane.placement.examples import adapter, worker
from tests.simulation.fleet import simulation

SIMULATED_WORKERS, SIMULATED_ADAPTERS = 200, 10_000
LEASE_S = 10.0  # all of these workers share one process, which is late now and then


def measure() -> dict[str, float]:
    """Planning one adapter more, and its memory."""
    figures = uvloop.run(simulate())
    each_adapter, each_worker = planning_bytes(SIMULATED_WORKERS, SIMULATED_ADAPTERS)
    print(f"  planning memory: {each_adapter:.0f} bytes an adapter, {each_worker:.0f} bytes a worker")
    return {**figures, "plan_bytes": each_adapter}


async def simulate() -> dict[str, float]:
    """Print what the fleet went through; what planning one adapter more costs then."""
    async with simulation(SIMULATED_WORKERS, SIMULATED_ADAPTERS, lease_s=LEASE_S) as (run, leader):
        cost = await run.change(leader)
        print("\n".join(run.findings.lines()))
    return {"plan_us": 1e6 * cost.seconds / cost.changes, "plan_pairs": cost.pairs / cost.changes}


def planning_bytes(num_workers: int, num_adapters: int) -> tuple[float, float]:
    """Bytes of desired state beside the registry's own values: of each adapter, and of an empty worker."""
    fleet = [worker(f"w{number:03}") for number in range(num_workers)]
    adapters = [adapter(f"bot-{number}", resource_version=number + 1) for number in range(num_adapters)]
    desired = Desired(2)
    tracemalloc.start()
    for one in fleet:
        for _ in desired.observe(one):
            continue
    workers_bytes = tracemalloc.get_traced_memory()[0]
    for other in adapters:
        desired.put(other)
    total_bytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return (total_bytes - workers_bytes) / num_adapters, workers_bytes / num_workers
