"""Running: a replica's long-lived tasks and its server, for the time of a block.

Invariant: what `running` starts has ended when its block ends.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from redis.asyncio import Redis

from control_plane.config import ControlSettings
from control_plane.plane import Plane, assemble
from control_plane.workers.farewell import Farewell
from control_plane.workers.outage import ride_out

_log = structlog.get_logger(__name__)


@asynccontextmanager
async def running(settings: ControlSettings, redis: Redis) -> AsyncIterator[Plane]:
    """Run a replica for the time of the block; on leaving, let running requests end."""
    plane = await assemble(settings, redis)
    async with asyncio.TaskGroup() as tasks:
        owned = [
            tasks.create_task(plane.fleet.run(), name="fleet"),
            tasks.create_task(ride_out("lookups", plane.registry.follow), name="lookups"),
            tasks.create_task(ride_out("takeover", plane.registry.take_over), name="takeover"),
            tasks.create_task(plane.grant_keys.run(), name="grant keys"),
            tasks.create_task(plane.leadership.run(plane.desk.lead), name="leadership"),
            tasks.create_task(plane.dispatcher.run(), name="dispatcher"),
            tasks.create_task(plane.prefetch.run(), name="prefetch"),
            tasks.create_task(plane.admission.run(), name="admission"),
            tasks.create_task(plane.direct.run(), name="direct"),
            tasks.create_task(plane.trials.run(), name="trials"),
            tasks.create_task(Farewell(plane.registry, plane.fleet).run(), name="farewell"),
            tasks.create_task(plane.channels.run(), name="channels"),
            tasks.create_task(plane.readiness.run(), name="readiness"),
        ]
        await plane.server.start()
        try:
            yield plane
        finally:
            await _stop(plane, settings.shutdown_grace_s)
            for task in owned:
                task.cancel()


async def _stop(plane: Plane, grace_s: float) -> None:
    await plane.readiness.stop()
    refusing = asyncio.create_task(plane.server.stop(grace_s))  # no new calls from here on
    try:
        async with asyncio.timeout(grace_s):
            await plane.admission.idle()
    except TimeoutError:
        _log.warning("requests still ran at the end of the grace", grace_s=grace_s)
    # Workers' streams and watches never end by themselves: cut them now.
    await plane.server.stop(None)
    await refusing
    await plane.channels.close()
    await plane.resolvers.close()
    if plane.exporter is not None:
        await asyncio.to_thread(plane.exporter.close)
