"""S3Places: which buckets may be read, and where in them a tenant's adapters are.

Pure text. Invariant: nothing outside the allowed buckets has a location, and a confined request gets
none outside of what is kept for its tenant.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass

from control_plane.errors import Refused
from control_plane.resolvers.s3_location import SCHEME, S3Location, parse_location
from control_plane.resolvers.types import ResolveRequest

# Whole parts of the path: with `{tenant}-{name}`, tenant `a` could be led into what is tenant `a-b`'s.
TEMPLATE = re.compile(
    r"s3://(?P<bucket>[^/{}#]+)/(?:[^/{}#]+/)*\{tenant\}/(?:[^/{}#]+/)*\{name\}(?:/[^/{}#]+)*"
)
TEMPLATE_RULE = "must be s3://<bucket>/… with {tenant} and then {name} as whole parts of its path"


@dataclass(frozen=True, slots=True)
class S3Places:
    """Allowed buckets, and the path template of adapters that are asked for by name."""

    buckets: Collection[str]
    template: str = ""  # empty: only sources are looked for, no names; else as TEMPLATE

    def locate(self, request: ResolveRequest) -> S3Location | None:
        """Return where to look; None when it is not for S3. Raises Refused, whether it exists or not."""
        if not request.source:
            return self._by_name(request)
        if not request.source.startswith(SCHEME):
            return None
        location = parse_location(request.source)
        if location.bucket not in self.buckets:
            raise Refused(f"{location} is outside the allowed buckets")
        if request.confined and not self._keeps(location, request.tenant):
            raise Refused(f"{location} is outside of what is kept for {request.tenant!r}")
        return location

    def _by_name(self, request: ResolveRequest) -> S3Location | None:
        if not self.template:
            return None
        return parse_location(self.template.format(tenant=request.tenant, name=request.name))

    def _keeps(self, location: S3Location, tenant: str) -> bool:
        kept = self.template.partition("{name}")[0].format(tenant=tenant)  # ends with a slash
        return bool(kept) and str(location).startswith(kept)
