"""Plane: one control-plane replica, put together from its settings and a Redis.

Owns every long-lived task and the server. Knows no process: no signals, no environment, no
embedded Valkey. Invariant: what `running` starts has ended when its block ends.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
import structlog
from redis.asyncio import Redis

from control_plane.access.grants import GrantSigner
from control_plane.access.keys import Keys
from control_plane.api.access import AccessServicer
from control_plane.api.admission import Admission
from control_plane.api.channels import Channels
from control_plane.api.fleet import FleetServicer
from control_plane.api.inference import SERVICE as INFERENCE
from control_plane.api.inference import InferenceServicer
from control_plane.api.interceptors import CallInterceptor
from control_plane.api.quotas import QuotasServicer
from control_plane.api.readiness import Readiness
from control_plane.api.registry import RegistryServicer
from control_plane.api.relay import Relay
from control_plane.api.server import STORE_SERVICES, Servicers, build
from control_plane.api.sync import SyncServicer
from control_plane.config import ControlSettings
from control_plane.errors import InvalidArgument
from control_plane.quotas.service import Quotas
from control_plane.registry.service import Registry
from control_plane.resolvers.chain import ResolverChain
from control_plane.resolvers.filesystem import FilesystemResolver
from control_plane.workers.directory import Directory
from control_plane.workers.dispatch import Dispatcher
from control_plane.workers.fleet import Fleet
from control_plane.workers.leader import Leadership
from control_plane.workers.ledger import Ledger
from control_plane.workers.operator import Operator
from control_plane.workers.planner import Desk
from control_plane.workers.sessions import Sessions

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plane:
    """The parts of one replica."""

    keys: Keys
    registry: Registry
    quotas: Quotas
    fleet: Fleet
    leadership: Leadership
    sessions: Sessions
    dispatcher: Dispatcher
    desk: Desk
    admission: Admission
    channels: Channels
    readiness: Readiness
    server: grpc.aio.Server
    address: str  # where it listens, with the port it got


async def assemble(settings: ControlSettings, redis: Redis) -> Plane:
    """Put a replica together; nothing runs yet."""
    replica, keys, directory = uuid.uuid4().hex, Keys(redis), Directory(redis)
    quotas = Quotas(redis, settings.default_limits, settings.reservation_ttl_s)
    registry = Registry(redis, _resolvers(settings), quotas.limits_of)
    signer = await GrantSigner.load_or_create(redis)
    fleet, channels, ledger = Fleet(directory, time.monotonic), Channels(), Ledger(redis, time.time)
    leadership = Leadership(redis, replica=replica, lease_s=settings.leader_lease_ttl_s, clock=time.monotonic)
    sessions = Sessions(
        directory,
        leadership,
        replica=replica,
        grant_keys=signer.public_keys(),
        lease_s=settings.worker_lease_ttl_s,
        command_timeout_s=settings.command_timeout_s,
        new_id=_new_id,
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
    operator = Operator(fleet, dispatcher, ledger, leadership, num_holders=settings.num_holders)
    admission = Admission(quotas, reservation_ttl_s=settings.reservation_ttl_s)
    relay = Relay(registry, fleet, admission, channels, signer, grant_ttl_s=settings.grant_ttl_s)
    readiness = Readiness(redis, fleet, with_worker=(INFERENCE,), with_store=STORE_SERVICES)
    servicers = Servicers(
        access=AccessServicer(keys),
        fleet=FleetServicer(fleet, directory),
        inference=InferenceServicer(relay, registry, fleet),
        quotas=QuotasServicer(quotas, fleet),
        registry=RegistryServicer(registry, operator, ledger, fleet),
        sync=SyncServicer(sessions),
        readiness=readiness,
    )
    server = build(servicers, CallInterceptor(keys))
    return Plane(
        keys=keys,
        registry=registry,
        quotas=quotas,
        fleet=fleet,
        leadership=leadership,
        sessions=sessions,
        dispatcher=dispatcher,
        desk=desk,
        admission=admission,
        channels=channels,
        readiness=readiness,
        server=server,
        address=_listen(server, settings),
    )


@asynccontextmanager
async def running(settings: ControlSettings, redis: Redis) -> AsyncIterator[Plane]:
    """Run a replica for the time of the block; on leaving, let running requests end."""
    plane = await assemble(settings, redis)
    async with asyncio.TaskGroup() as tasks:
        owned = [
            tasks.create_task(plane.fleet.run(), name="fleet"),
            tasks.create_task(plane.leadership.run(plane.desk.lead), name="leadership"),
            tasks.create_task(plane.dispatcher.run(), name="dispatcher"),
            tasks.create_task(plane.admission.run(), name="admission"),
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


def _resolvers(settings: ControlSettings) -> ResolverChain:
    known = {"filesystem": lambda: FilesystemResolver(settings.adapter_roots)}
    return ResolverChain([known[name]() for name in settings.resolvers], time.monotonic)


def _listen(server: grpc.aio.Server, settings: ControlSettings) -> str:
    try:
        if settings.tls_cert_file is None or settings.tls_key_file is None:
            port = server.add_insecure_port(settings.listen)
        else:
            pair = (settings.tls_key_file.read_bytes(), settings.tls_cert_file.read_bytes())
            port = server.add_secure_port(settings.listen, grpc.ssl_server_credentials([pair]))
    except RuntimeError as error:
        raise InvalidArgument("listen", settings.listen, "cannot be listened on: is it in use?") from error
    if settings.listen.startswith("unix:"):
        return settings.listen
    return f"{settings.listen.rpartition(':')[0]}:{port}"


def _new_id() -> str:
    return uuid.uuid4().hex
