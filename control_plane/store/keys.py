"""Keys: the name of everything in Redis, in one place.

Owns the layout of the keyspace, not the format of any value. Keys that one script touches share
a hash tag (the part in braces), so that they live on one node of a cluster: the whole registry
under one tag, quotas under one tag a tenant.
"""

REGISTRY_ADAPTERS = "lp:{registry}:adapters"  # hash  tenant/name → stored adapter
REGISTRY_NAMES = "lp:{registry}:names"  # hash  tenant/name-or-alias → tenant/name
REGISTRY_INDEX = "lp:{registry}:index"  # zset  tenant/name, all of score 0: the order of listings
REGISTRY_VERSION = "lp:{registry}:version"  # integer: the last change's number
REGISTRY_FORMAT = "lp:{registry}:format"  # integer: what of the registry is there, see registry.migration
REGISTRY_CHANGES = "lp:{registry}:changes"  # stream: one entry a change, its id is `<version>-0`
REGISTRY_RESOLVING = "lp:{registry}:resolving"  # hash  tenant/name → who reads its source, as JSON
REGISTRY_DELETING = "lp:{registry}:deleting"  # zset  tenant/name of what waits for workers to let go, score 0
QUOTA_INDEX = "lp:{quotas}:index"  # zset  tenant/adapter with limits of their own, score 0
ACCESS_KEYS = "lp:{access}:keys"  # hash  key id → stored API key
ACCESS_USED = "lp:{access}:used"  # hash  key id → Unix time of its last use, within seconds
ACCESS_AUDIT = "lp:{access}:audit"  # stream: one entry a call that changed something
ACCESS_GRANT_KEYS = "lp:{access}:grant-keys"  # zset: private keys that sign grants, by when they begin


def registry_held(tenant: str) -> str:
    """Hash of what a tenant has registered: fields `adapters` and `bytes`."""
    return f"lp:{{registry}}:held:{tenant}"


def registry_shared(tenant: str) -> str:
    """Zset of `tenant/name` that other tenants share with one, all of score 0."""
    return f"lp:{{registry}}:shared:{tenant}"


def registry_label(label: str, value: str) -> str:
    """Zset of `tenant/name` with one value of one label, all of score 0."""
    return f"lp:{{registry}}:label:{label}={value}"


def registry_trial(adapter: str, trial: str) -> str:
    """Hash of how a canary's requests went lately; expires. A trial is one start of one canary."""
    return f"lp:{{trial:{adapter}}}:{trial}"


def quota_totals(tenant: str) -> str:
    """Hash of what a tenant has used, ever."""
    return f"lp:{{quota:{tenant}}}:totals"


def quota_reservation(tenant: str, request_id: str) -> str:
    """Hash of one admitted request; expires."""
    return f"lp:{{quota:{tenant}}}:request:{request_id}"


def quota_scope(tenant: str, adapter: str = "") -> tuple[str, str, str]:
    """Keys of one set of limits, of a tenant or of one of its adapters.

    Hash of limits · hash of bucket levels · zset of requests in flight by expiry.
    """
    scope = f"lp:{{quota:{tenant}}}:{adapter}"
    return f"{scope}:limits", f"{scope}:buckets", f"{scope}:inflight"


def quota_slots(tenant: str, adapter: str = "") -> tuple[str, str, str]:
    """Keys of the slots of a tenant's adapters, or of one of them.

    Hash of limits · hash of bucket levels · zset of claimed slots by expiry.
    """
    limits, buckets, _ = quota_scope(tenant, adapter)
    return limits, buckets, f"lp:{{quota:{tenant}}}:{adapter}:slots"
