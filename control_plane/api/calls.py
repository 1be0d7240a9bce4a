"""Calls: a client's request as the relay sees it, and what its target means to those it is passed to."""

import time
from dataclasses import dataclass, field

from control_plane.access.grants import GrantedAdapter
from control_plane.placement.route import Wanted
from control_plane.registry.types import Target
from protos.inference.v1 import inference_pb2 as pb


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What a call says beside its message."""

    tenant: str
    request_id: str
    timeout_s: float | None  # that remain; None: no deadline
    trace: tuple[tuple[str, str], ...] = ()  # W3C trace context, passed on
    began_s: float = field(default_factory=time.monotonic)

    def is_overdue(self) -> bool:
        """Whether its client has waited nine tenths of the time it wanted to, or more."""
        # Not all of it: the client's own clock began before ours, by the way here and by up to 1 % that
        # gRPC rounds up, and its end of the call looks like any other cancellation.
        return self.timeout_s is not None and time.monotonic() - self.began_s >= 0.9 * self.timeout_s


@dataclass(frozen=True, slots=True)
class Generate:
    """A request parsed once for what routing and quotas need, and kept as it came."""

    raw: bytes
    message: pb.GenerateRequest

    @classmethod
    def parse(cls, raw: bytes) -> "Generate":
        """Parse a request; the deserializer of its method."""
        return cls(raw, pb.GenerateRequest.FromString(raw))


@dataclass(frozen=True, slots=True)
class Tokenize:
    """A prompt to tokenize, likewise."""

    raw: bytes
    model: str

    @classmethod
    def parse(cls, raw: bytes) -> "Tokenize":
        """Parse a request; the deserializer of its method."""
        return cls(raw, pb.TokenizeRequest.FromString(raw).model)


def own_adapter(target: Target, tenant: str) -> str:
    """Return the adapter's name when it is the tenant's own, for limits of its own."""
    adapter = target.adapter
    return adapter.key.name if adapter is not None and adapter.key.tenant == tenant else ""


def wanted(target: Target) -> Wanted:
    """Return what the target needs of a worker."""
    if target.revision is None:
        return Wanted(target.base_model)
    revision = target.revision
    return Wanted(target.base_model, revision.digest, revision.rank, revision.size_bytes)


def granted(target: Target) -> GrantedAdapter | None:
    """Return the one revision that a grant for the target allows."""
    if target.adapter is None or target.revision is None:
        return None
    return GrantedAdapter(
        tenant=target.adapter.key.tenant,
        name=target.adapter.key.name,
        revision=target.revision.number,
        digest=target.revision.digest,
        source=target.revision.source,
    )
