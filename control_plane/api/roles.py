"""Roles: which API key may call which method. The whole matrix, in one table.

A method without an entry is refused to everyone; a test fails when a served method has none.
"""

from control_plane.access.types import Role

ADMIN = frozenset({Role.ADMIN})
TENANT_ADMIN = ADMIN | {Role.TENANT_ADMIN}  # confined to its own tenant by `caller`
INFERENCE = TENANT_ADMIN | {Role.INFERENCE}
WORKER = frozenset({Role.WORKER})

_BY_ROLES = {
    ("inference.v1.Inference", INFERENCE): ("Generate", "Route", "ListModels", "Tokenize"),
    ("registry.v1.AdapterRegistry", TENANT_ADMIN): (
        "RegisterAdapter",
        "GetAdapter",
        "ListAdapters",
        "PublishRevision",
        "Rollback",
        "SetTraffic",
        "StartCanary",
        "EndCanary",
        "PinAdapter",
        "UnpinAdapter",
        "ShareAdapter",
        "UnshareAdapter",
        "DeleteAdapter",
        "WatchAdapters",
        "LoadAdapter",
        "EvictAdapter",
        "ReloadAdapter",
    ),
    ("access.v1.AccessKeys", TENANT_ADMIN): ("CreateKey", "ListKeys", "RevokeKey", "RotateKey"),
    ("access.v1.AccessKeys", ADMIN): ("ListAuditEvents",),
    # A tenant sees what it may use; what it may use is not its own to decide.
    ("quota.v1.TenantQuotas", TENANT_ADMIN): ("GetQuota", "GetUsage"),
    ("quota.v1.TenantQuotas", ADMIN): ("SetQuota", "DeleteQuota", "ListQuotas"),
    ("fleet.v1.Fleet", ADMIN): (
        "ListWorkers",
        "GetWorker",
        "CordonWorker",
        "DrainWorker",
        "WatchWorkers",
    ),
    ("sync.v1.WorkerSync", WORKER): ("Sync",),
}

ROLES: dict[str, frozenset[Role]] = {
    f"/loraplane.{service}/{method}": roles
    for (service, roles), methods in _BY_ROLES.items()
    for method in methods
}

# What orchestrators and grpcurl call without a key; they tell nothing about tenants.
OPEN_SERVICES = (
    "/grpc.health.v1.Health/",
    "/grpc.reflection.v1alpha.ServerReflection/",
)


def is_open(method: str) -> bool:
    """Whether a method (`/package.Service/Method`) needs no key."""
    return method.startswith(OPEN_SERVICES)
