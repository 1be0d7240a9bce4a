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

from control_plane.access.audit import AuditLog
from control_plane.access.direct_grants import DirectGrants
from control_plane.access.grant_keys import GrantKeys, Rotation
from control_plane.access.grants import GrantSigner
from control_plane.access.keys import Keys
from control_plane.api.access import AccessServicer
from control_plane.api.admission import Admission
from control_plane.api.auditing import Auditor
from control_plane.api.channels import Channels
from control_plane.api.fleet import FleetServicer
from control_plane.api.in_flight import InFlight
from control_plane.api.inference import SERVICE as INFERENCE
from control_plane.api.inference import InferenceServicer
from control_plane.api.interceptors import CallInterceptor
from control_plane.api.quotas import QuotasServicer
from control_plane.api.readiness import Readiness
from control_plane.api.registry import RegistryServicer
from control_plane.api.relay import Relay
from control_plane.api.residency import Residency
from control_plane.api.route import Routes, RouteSettings
from control_plane.api.server import STORE_SERVICES, Servicers, build
from control_plane.api.sync import SyncServicer
from control_plane.api.tls import Tls
from control_plane.config import ControlSettings
from control_plane.errors import InvalidArgument
from control_plane.metrics.exporter import Exporter, ExporterTls
from control_plane.metrics.replica import ReplicaMetrics
from control_plane.quotas.local_share import LocalShare
from control_plane.quotas.service import Quotas
from control_plane.quotas.slots import SlotClaims
from control_plane.registry.declared import register_declared
from control_plane.registry.migration import migrate
from control_plane.registry.service import Registry
from control_plane.registry.trials import Trials
from control_plane.resolvers.build import build_chain
from control_plane.resolvers.chain import ResolverChain
from control_plane.workers.direct import DirectRequests
from control_plane.workers.direct_trials import DirectTrials
from control_plane.workers.directory import Directory
from control_plane.workers.dispatch import Dispatcher
from control_plane.workers.farewell import Farewell
from control_plane.workers.fleet import Fleet
from control_plane.workers.leader import Leadership
from control_plane.workers.leaving import Leaving
from control_plane.workers.ledger import Ledger
from control_plane.workers.operator import Operator
from control_plane.workers.outage import ride_out
from control_plane.workers.planner import Desk
from control_plane.workers.prefetch import Prefetch
from control_plane.workers.sessions import Sessions

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plane:
    """The parts of one replica."""

    keys: Keys
    grant_keys: GrantKeys
    resolvers: ResolverChain
    registry: Registry
    quotas: Quotas
    fleet: Fleet
    leadership: Leadership
    sessions: Sessions
    dispatcher: Dispatcher
    prefetch: Prefetch
    desk: Desk
    admission: Admission
    direct: DirectRequests
    trials: Trials
    channels: Channels
    readiness: Readiness
    server: grpc.aio.Server
    address: str  # where it listens, with the port it got
    exporter: Exporter | None  # of metrics


async def assemble(settings: ControlSettings, redis: Redis) -> Plane:
    """Put a replica together; nothing runs yet."""
    replica, directory, audit = uuid.uuid4().hex, Directory(redis), AuditLog(redis)
    keys = Keys(redis, outage_s=settings.outage_s)
    tls = _tls(settings)
    metrics = ReplicaMetrics()
    quotas = Quotas(redis, settings.default_limits, settings.reservation_ttl_s, settled=metrics.calls.settled)
    resolvers = build_chain(settings, time.monotonic)
    registry = Registry(
        redis,
        resolvers,
        quotas.limits_of,
        outage_s=settings.outage_s,
        resolve_on_request=settings.resolve_on_request,
    )
    grant_keys = GrantKeys(
        redis,
        Rotation.every(
            settings.grant_key_life_s,
            grant_ttl_s=settings.grant_ttl_s,
            worker_lease_s=settings.worker_lease_ttl_s,
        ),
    )
    await grant_keys.refresh()
    await migrate(redis)
    await register_declared(registry, settings.lora_modules)
    fleet, channels = Fleet(directory, time.monotonic), Channels(tls.dial)
    ledger = Ledger(redis, time.time)
    leadership = Leadership(redis, replica=replica, lease_s=settings.leader_lease_ttl_s, clock=time.monotonic)
    slots = SlotClaims(redis, settings.default_limits, settings.reservation_ttl_s)
    trials = Trials(redis, registry)
    direct = DirectRequests(
        quotas,
        slots,
        DirectGrants(grant_keys.known),
        reservation_ttl_s=settings.reservation_ttl_s,
        ended=DirectTrials(registry, trials).note,
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
    operator = Operator(fleet, dispatcher, ledger, leadership, num_holders=settings.num_holders)
    admission = Admission(
        quotas,
        slots,
        reservation_ttl_s=settings.reservation_ttl_s,
        local_share=_local_share(settings),
        first_token=metrics.calls.first_token,
    )
    residency, in_flight = Residency(slots, fleet, registry, operator), InFlight()
    prefetch = Prefetch(dispatcher, leadership)
    relay = Relay(
        registry=registry,
        fleet=fleet,
        admission=admission,
        residency=residency,
        trials=trials,
        channels=channels,
        in_flight=in_flight,
        signer=GrantSigner(lambda: grant_keys.signing),
        grant_ttl_s=settings.grant_ttl_s,
    )
    routes = Routes(
        RouteSettings(
            # A reservation must outlive the last moment at which its grant may be used.
            grant_ttl_s=min(settings.grant_ttl_s, settings.reservation_ttl_s / 2),
            tls_server_name=settings.tls_worker_name,
        ),
        registry=registry,
        fleet=fleet,
        quotas=quotas,
        slots=slots,
        residency=residency,
        prefetch=prefetch,
        in_flight=in_flight,
        signer=GrantSigner(lambda: grant_keys.signing),
    )
    readiness = Readiness(redis, fleet, with_worker=(INFERENCE,), with_store=STORE_SERVICES)
    servicers = Servicers(
        access=AccessServicer(keys, audit),
        fleet=FleetServicer(fleet, directory),
        inference=InferenceServicer(relay, routes, registry, fleet),
        quotas=QuotasServicer(quotas, fleet),
        registry=RegistryServicer(registry, operator, ledger, fleet),
        sync=SyncServicer(sessions),
        readiness=readiness,
    )
    interceptor = CallInterceptor(
        keys, Auditor(audit), metrics.calls, allow_adapter_changes=settings.allow_adapter_changes
    )
    server = build(servicers, interceptor)
    metrics.read_fleet(fleet.workers, lambda: leadership.leads)
    return Plane(
        keys=keys,
        grant_keys=grant_keys,
        resolvers=resolvers,
        registry=registry,
        quotas=quotas,
        fleet=fleet,
        leadership=leadership,
        sessions=sessions,
        dispatcher=dispatcher,
        prefetch=prefetch,
        desk=desk,
        admission=admission,
        direct=direct,
        trials=trials,
        channels=channels,
        readiness=readiness,
        server=server,
        address=_listen(server, settings.listen, tls),
        exporter=_export(settings, metrics),
    )


@asynccontextmanager
async def running(settings: ControlSettings, redis: Redis) -> AsyncIterator[Plane]:
    """Run a replica for the time of the block; on leaving, let running requests end."""
    plane = await assemble(settings, redis)
    async with asyncio.TaskGroup() as tasks:
        owned = [
            tasks.create_task(plane.fleet.run(), name="fleet"),
            tasks.create_task(ride_out("lookups", plane.registry.follow), name="lookups"),
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


def _tls(settings: ControlSettings) -> Tls:
    return Tls.read(
        settings.tls_cert_file,
        settings.tls_key_file,
        settings.tls_ca_file,
        require_client_certificate=settings.tls_require_client_cert,
        worker_name=settings.tls_worker_name,
    )


def _export(settings: ControlSettings, metrics: ReplicaMetrics) -> Exporter | None:
    if not settings.metrics_listen:
        return None
    tls = ExporterTls(
        certificate=settings.tls_cert_file,
        private_key=settings.tls_key_file,
        authority=settings.tls_ca_file if settings.tls_require_client_cert else None,
    )
    exporter = Exporter.start(settings.metrics_listen, metrics.registry, tls)
    _log.info("metrics are served", metrics_address=exporter.address)
    return exporter


def _local_share(settings: ControlSettings) -> LocalShare | None:
    share = settings.store_loss_requests_per_minute
    return LocalShare(share, time.monotonic) if share else None


def _listen(server: grpc.aio.Server, address: str, tls: Tls) -> str:
    try:
        port = tls.listen(server, address)
    except RuntimeError as error:
        raise InvalidArgument("listen", address, "cannot be listened on: is it in use?") from error
    if address.startswith("unix:"):
        return address
    return f"{address.rpartition(':')[0]}:{port}"


def _new_id() -> str:
    return uuid.uuid4().hex
