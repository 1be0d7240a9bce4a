"""Build: everything that deals with workers, put together once. Nothing runs yet."""

import time
import uuid
from dataclasses import dataclass

from redis.asyncio import Redis

from control_plane.access.direct_grants import DirectGrants
from control_plane.access.grant_keys import GrantKeys
from control_plane.config import ControlSettings
from control_plane.quotas.service import Quotas
from control_plane.quotas.slots import SlotClaims
from control_plane.registry.service import Registry
from control_plane.workers.direct import DirectRequests, Ended
from control_plane.workers.directory import Directory
from control_plane.workers.dispatch import Dispatcher
from control_plane.workers.fleet import Fleet
from control_plane.workers.leader import Leadership
from control_plane.workers.leaving import Leaving
from control_plane.workers.ledger import Ledger
from control_plane.workers.operator import Operator
from control_plane.workers.planner import Desk
from control_plane.workers.prefetch import Prefetch
from control_plane.workers.sessions import Sessions


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """What knows, plans and commands workers."""

    directory: Directory
    fleet: Fleet
    ledger: Ledger
    leadership: Leadership
    direct: DirectRequests
    sessions: Sessions
    dispatcher: Dispatcher
    desk: Desk
    operator: Operator
    prefetch: Prefetch


def build_workers(
    settings: ControlSettings,
    redis: Redis,
    *,
    replica: str,
    registry: Registry,
    quotas: Quotas,
    slots: SlotClaims,
    grant_keys: GrantKeys,
    ended: Ended,
) -> Workers:
    """Put them together; `ended` is told of each direct request that has ended."""
    directory = Directory(redis)
    fleet, ledger = Fleet(directory, time.monotonic), Ledger(redis, time.time)
    leadership = Leadership(redis, replica=replica, lease_s=settings.leader_lease_ttl_s, clock=time.monotonic)
    direct = DirectRequests(
        quotas,
        slots,
        DirectGrants(grant_keys.known),
        reservation_ttl_s=settings.reservation_ttl_s,
        ended=ended,
    )
    sessions = Sessions(
        directory,
        leadership,
        direct,
        replica=replica,
        grant_keys=grant_keys.public,
        lease_s=settings.worker_lease_ttl_s,
        command_timeout_s=settings.command_timeout_s,
        new_id=_new_id,
        heard=fleet.heard,
        may_leave=Leaving(fleet, time.monotonic).may_leave,
    )
    dispatcher = Dispatcher(
        redis,
        fleet,
        sessions,
        replica=replica,
        command_timeout_s=settings.command_timeout_s,
        new_id=_new_id,
    )
    desk = Desk(
        registry=registry,
        fleet=fleet,
        ledger=ledger,
        dispatcher=dispatcher,
        num_holders=settings.num_holders,
        clock=time.time,
    )
    return Workers(
        directory=directory,
        fleet=fleet,
        ledger=ledger,
        leadership=leadership,
        direct=direct,
        sessions=sessions,
        dispatcher=dispatcher,
        desk=desk,
        operator=Operator(fleet, dispatcher, ledger, leadership, num_holders=settings.num_holders),
        prefetch=Prefetch(dispatcher, leadership),
    )


def _new_id() -> str:
    return uuid.uuid4().hex
