"""Plane: one control-plane replica, put together from its settings and a Redis.

Owns what is given to whom. Knows no process (no signals, no environment, no embedded Valkey), and runs
nothing: that is `running`'s.
"""

import time
import uuid
from dataclasses import dataclass

import grpc
from redis.asyncio import Redis

from control_plane.access.audit import AuditLog
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
from control_plane.config import ControlSettings
from control_plane.endpoints import export, listen, read_tls
from control_plane.metrics.exporter import Exporter
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
from control_plane.workers.build import build_workers
from control_plane.workers.direct import DirectRequests
from control_plane.workers.direct_trials import DirectTrials
from control_plane.workers.dispatch import Dispatcher
from control_plane.workers.fleet import Fleet
from control_plane.workers.leader import Leadership
from control_plane.workers.planner import Desk
from control_plane.workers.prefetch import Prefetch
from control_plane.workers.sessions import Sessions


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
    audit, keys = AuditLog(redis), Keys(redis, outage_s=settings.outage_s)
    tls, metrics = read_tls(settings), ReplicaMetrics()
    quotas = Quotas(redis, settings.default_limits, settings.reservation_ttl_s, settled=metrics.calls.settled)
    resolvers = build_chain(settings, time.monotonic)
    registry = Registry(
        redis,
        resolvers,
        quotas.limits_of,
        outage_s=settings.outage_s,
        resolve_on_request=settings.resolve_on_request,
        reader_lease_s=settings.leader_lease_ttl_s,
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
    channels = Channels(tls.dial)
    slots = SlotClaims(redis, settings.default_limits, settings.reservation_ttl_s)
    trials = Trials(redis, registry)
    workers = build_workers(
        settings,
        redis,
        replica=uuid.uuid4().hex,
        registry=registry,
        quotas=quotas,
        slots=slots,
        grant_keys=grant_keys,
        ended=DirectTrials(registry, trials).note,
    )
    fleet = workers.fleet
    admission = Admission(
        quotas,
        slots,
        reservation_ttl_s=settings.reservation_ttl_s,
        local_share=_local_share(settings),
        first_token=metrics.calls.first_token,
    )
    residency, in_flight = Residency(slots, fleet, registry, workers.operator), InFlight()
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
        prefetch=workers.prefetch,
        in_flight=in_flight,
        signer=GrantSigner(lambda: grant_keys.signing),
    )
    readiness = Readiness(redis, fleet, with_worker=(INFERENCE,), with_store=STORE_SERVICES)
    servicers = Servicers(
        access=AccessServicer(keys, audit),
        fleet=FleetServicer(fleet, workers.directory),
        inference=InferenceServicer(relay, routes, registry, fleet),
        quotas=QuotasServicer(quotas, fleet),
        registry=RegistryServicer(registry, workers.operator, workers.ledger, fleet),
        sync=SyncServicer(workers.sessions),
        readiness=readiness,
    )
    interceptor = CallInterceptor(
        keys, Auditor(audit), metrics.calls, allow_adapter_changes=settings.allow_adapter_changes
    )
    server = build(servicers, interceptor)
    metrics.read_fleet(fleet.workers, lambda: workers.leadership.leads)
    return Plane(
        keys=keys,
        grant_keys=grant_keys,
        resolvers=resolvers,
        registry=registry,
        quotas=quotas,
        fleet=fleet,
        leadership=workers.leadership,
        sessions=workers.sessions,
        dispatcher=workers.dispatcher,
        prefetch=workers.prefetch,
        desk=workers.desk,
        admission=admission,
        direct=workers.direct,
        trials=trials,
        channels=channels,
        readiness=readiness,
        server=server,
        address=listen(server, settings.listen, tls),
        exporter=export(settings, metrics),
    )


def _local_share(settings: ControlSettings) -> LocalShare | None:
    share = settings.store_loss_requests_per_minute
    return LocalShare(share, time.monotonic) if share else None
