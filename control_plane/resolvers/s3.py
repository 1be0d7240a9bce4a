"""S3Resolver: PEFT adapter directories in allowed buckets of one S3 service.

A source is `s3://<bucket>/<prefix>`; without one, the place that the path template gives for tenant
and name is looked at. The answer's URI pins every file, see `s3_location`.
"""

from control_plane.resolvers.adapter_files import CONFIG, WEIGHTS, read_adapter
from control_plane.resolvers.s3_client import S3Access, S3Client
from control_plane.resolvers.s3_files import S3Files
from control_plane.resolvers.s3_places import S3Places
from control_plane.resolvers.types import Resolved, ResolveRequest


class S3Resolver:
    """Reads adapters from buckets."""

    name = "s3"

    def __init__(self, places: S3Places, access: S3Access) -> None:
        self._places = places
        self._client = S3Client(access)

    async def resolve(self, request: ResolveRequest) -> Resolved | None:
        """See Resolver."""
        location = self._places.locate(request)
        if location is None:
            return None
        files = S3Files(self._client, location)
        if not (await files.has(CONFIG) or await files.has(WEIGHTS)):
            return None
        resolved = await read_adapter(files)
        await files.check_unchanged()
        return resolved

    async def close(self) -> None:
        """See Resolver."""
        await self._client.close()
