"""Codec: adapters to and from the text that Redis keeps.

A stored adapter is `<resource version> <JSON>`: the script that commits a change assigns the
version, and compares it, without reading the JSON. An adapter's generation is the resource version
of its last change: it grows over the whole registry, so that a deleted and registered-again
adapter never sends commands that look older than those of its first life.
"""

import json
from dataclasses import asdict
from typing import Any

from control_plane.registry.types import (
    Adapter,
    AdapterKey,
    Canary,
    DecisionKind,
    PinTier,
    ReloadPolicy,
    Revision,
    RevisionState,
    TrafficDecision,
    TrafficWeight,
)


def encode(adapter: Adapter) -> str:
    """Return the JSON part; resource version and generation are not in it."""
    return json.dumps(
        {
            "tenant": adapter.key.tenant,
            "name": adapter.key.name,
            "base_model": adapter.base_model,
            "revisions": [_encode_revision(revision) for revision in adapter.revisions],
            "current_revision": adapter.current_revision,
            "aliases": adapter.aliases,
            "labels": adapter.labels,
            "shared_with": adapter.shared_with,
            "traffic": [(share.revision, share.weight) for share in adapter.traffic],
            "canary": asdict(adapter.canary) if adapter.canary else None,
            "decisions": [
                (one.time_s, one.kind.value, one.revision, one.reason) for one in adapter.decisions
            ],
            "pin": adapter.pin.value,
            "reload_policy": adapter.reload_policy.value,
            "created_s": adapter.created_s,
            "updated_s": adapter.updated_s,
            "deleted_s": adapter.deleted_s,
        },
        separators=(",", ":"),
    )


def decode(stored: str) -> Adapter:
    """Return the adapter of a stored text."""
    version, _, document = stored.partition(" ")
    fields: dict[str, Any] = json.loads(document)
    return Adapter(
        key=AdapterKey(fields["tenant"], fields["name"]),
        base_model=fields["base_model"],
        revisions=tuple(_decode_revision(revision) for revision in fields["revisions"]),
        current_revision=fields["current_revision"],
        generation=int(version),
        resource_version=int(version),
        aliases=tuple(fields["aliases"]),
        labels=fields["labels"],
        shared_with=tuple(fields["shared_with"]),
        traffic=tuple(TrafficWeight(*share) for share in fields["traffic"]),
        # Adapters that were stored before there were canaries have neither.
        canary=Canary(**fields["canary"]) if fields.get("canary") else None,
        decisions=tuple(
            TrafficDecision(time_s, DecisionKind(kind), revision, reason)
            for time_s, kind, revision, reason in fields.get("decisions", ())
        ),
        pin=PinTier(fields["pin"]),
        reload_policy=ReloadPolicy(fields["reload_policy"]),
        created_s=fields["created_s"],
        updated_s=fields["updated_s"],
        deleted_s=fields.get("deleted_s", 0.0),
    )


def _encode_revision(revision: Revision) -> dict[str, object]:
    return {
        "number": revision.number,
        "digest": revision.digest,
        "source": revision.source,
        "rank": revision.rank,
        "target_modules": revision.target_modules,
        "size_bytes": revision.size_bytes,
        "state": revision.state.value,
        "failure": revision.failure,
        "created_s": revision.created_s,
    }


def _decode_revision(fields: dict[str, Any]) -> Revision:
    return Revision(
        number=fields["number"],
        digest=fields["digest"],
        source=fields["source"],
        rank=fields["rank"],
        target_modules=tuple(fields["target_modules"]),
        size_bytes=fields["size_bytes"],
        state=RevisionState(fields["state"]),
        failure=fields["failure"],
        created_s=fields["created_s"],
    )
