"""Keys: the names of what the control plane keeps in Redis about workers.

All share one hash tag, so that any script may touch several of them on a cluster.
"""

WORKER_IDS = "lp:{fleet}:workers"  # set of worker ids
WORKER_CHANGES = "lp:{fleet}:changes"  # stream: one entry a change of a worker
LEADER = "lp:{fleet}:leader"  # string: the leader's replica id; expires with its lease
FENCING_TOKEN = "lp:{fleet}:fencing-token"  # integer: grows with every term  # noqa: S105


def worker(worker_id: str) -> str:
    """Hash: session, replica, instance, body, version, intent, lease_ms, report_ms of one worker."""
    return f"lp:{{fleet}}:worker:{worker_id}"


def held(worker_id: str) -> str:
    """Hash of what a worker holds: digest → HeldAdapter."""
    return f"lp:{{fleet}}:held:{worker_id}"


def inbox(replica: str) -> str:
    """Stream of what other replicas ask of one."""
    return f"lp:{{fleet}}:inbox:{replica}"


def ledger(adapter: str) -> str:
    """Hash of what workers answered about one adapter (`tenant/name`)."""
    return f"lp:{{fleet}}:ledger:{adapter}"
