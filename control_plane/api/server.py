"""Server: every service on one gRPC server.

Knows which services there are; what they do is theirs.
"""

from dataclasses import dataclass

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from control_plane.api import inference
from control_plane.api.access import AccessServicer
from control_plane.api.fleet import FleetServicer
from control_plane.api.interceptors import CallInterceptor
from control_plane.api.quotas import QuotasServicer
from control_plane.api.readiness import Readiness
from control_plane.api.registry import RegistryServicer
from control_plane.api.sync import SyncServicer
from control_plane.api.tls import KEEPALIVE
from protos.access.v1 import access_pb2, access_pb2_grpc
from protos.fleet.v1 import fleet_pb2, fleet_pb2_grpc
from protos.quota.v1 import quota_pb2, quota_pb2_grpc
from protos.registry.v1 import registry_pb2, registry_pb2_grpc
from protos.sync.v1 import sync_pb2, sync_pb2_grpc

MAX_MESSAGE_BYTES = 64 << 20
OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # Two servers that share a port by accident would split clients between them.
    ("grpc.so_reuseport", 0),
    # Workers ping every 5 s; by default gRPC takes that for an attack.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 2_500),
    *KEEPALIVE,  # a client that is cut off neither reads nor leaves
)

# Services that answer as long as Redis does; Inference needs a worker too.
STORE_SERVICES: tuple[str, ...] = tuple(
    module.DESCRIPTOR.services_by_name[name].full_name
    for module, name in (
        (access_pb2, "AccessKeys"),
        (fleet_pb2, "Fleet"),
        (quota_pb2, "TenantQuotas"),
        (registry_pb2, "AdapterRegistry"),
        (sync_pb2, "WorkerSync"),
    )
)
SERVICES = (inference.SERVICE, *STORE_SERVICES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Servicers:
    """One of each service."""

    access: AccessServicer
    fleet: FleetServicer
    inference: inference.InferenceServicer
    quotas: QuotasServicer
    registry: RegistryServicer
    sync: SyncServicer
    readiness: Readiness


def build(servicers: Servicers, interceptor: CallInterceptor) -> grpc.aio.Server:
    """Return a server with every service, health and reflection; it listens nowhere yet."""
    server = grpc.aio.server(interceptors=(interceptor,), options=OPTIONS)
    access_pb2_grpc.add_AccessKeysServicer_to_server(servicers.access, server)
    fleet_pb2_grpc.add_FleetServicer_to_server(servicers.fleet, server)
    quota_pb2_grpc.add_TenantQuotasServicer_to_server(servicers.quotas, server)
    registry_pb2_grpc.add_AdapterRegistryServicer_to_server(servicers.registry, server)
    sync_pb2_grpc.add_WorkerSyncServicer_to_server(servicers.sync, server)
    server.add_generic_rpc_handlers((inference.handlers(servicers.inference),))
    health_pb2_grpc.add_HealthServicer_to_server(servicers.readiness.servicer, server)
    reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    return server
