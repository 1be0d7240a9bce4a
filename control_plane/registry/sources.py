"""Sources: what is at a place, if it is what its caller expects. Knows no adapters."""

import re

from control_plane.errors import InvalidArgument, NotFound, Refused, SourceUnavailable
from control_plane.registry import names
from control_plane.registry.bounds import MAX_SOURCE_CHARACTERS
from control_plane.resolvers.chain import ResolverChain
from control_plane.resolvers.types import Resolved, ResolveRequest

# What sources do wrong; anything else is the call's fault.
SOURCE_ERRORS = (Refused, NotFound, SourceUnavailable)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class Sources:
    """Reads sources."""

    def __init__(self, resolvers: ResolverChain) -> None:
        self._resolvers = resolvers

    async def read(self, request: ResolveRequest, expected_digest: str) -> Resolved:
        """Return what is there; raise one of SOURCE_ERRORS, or InvalidArgument."""
        names.check_length("source", request.source, MAX_SOURCE_CHARACTERS)
        if expected_digest and not _DIGEST.fullmatch(expected_digest):
            raise InvalidArgument("expected_digest", expected_digest, "must be 'sha256:' and 64 hex digits")
        resolved = await self._resolvers.resolve(request)
        if expected_digest not in ("", resolved.digest):
            raise Refused(
                f"{resolved.uri} has the digest {resolved.digest}, not the expected {expected_digest}"
            )
        return resolved
