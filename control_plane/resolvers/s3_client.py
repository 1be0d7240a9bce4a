"""S3Client: one connection pool to one S3 service, and its errors as ours.

Owns the session and its end; knows nothing of adapters. Made at first use, in the event loop that
uses it; botocore retries refusals of a busy service (503) and lost connections by itself, but not a
body that ends early: that is for the caller, who knows how much it has.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import s3fs
from botocore.exceptions import BotoCoreError, ClientError

from control_plane.errors import SourceUnavailable

MAX_ATTEMPTS = 3  # of one request, by botocore, with its back-off
MISSING = frozenset({"404", "NoSuchKey", "NoSuchBucket", "NoSuchVersion", "NotFound"})
CHANGED = frozenset({"412", "PreconditionFailed"})


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Access:
    """How a service is reached. Without a key, botocore looks where it always does (role, profile)."""

    endpoint_url: str = ""  # empty: AWS
    region: str = ""
    access_key_id: str = ""
    secret_access_key: str = field(default="", repr=False)
    timeout_s: float = 10.0  # to connect, and between two pieces of an answer


class S3Client:
    """Calls of an S3 service."""

    def __init__(self, access: S3Access) -> None:
        self._access = access
        self._client: Any = None  # of aiobotocore
        self._making = asyncio.Lock()

    async def call(self, method: str, **arguments: str) -> dict[str, Any]:
        """Call a method of the S3 API; raises what botocore raises."""
        async with self._making:  # two first calls at once would make two, and close one
            if self._client is None:
                self._client = await _filesystem(self._access).set_session()
        answer: dict[str, Any] = await getattr(self._client, method)(**arguments)
        return answer

    async def close(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()


def _filesystem(access: S3Access) -> Any:
    return s3fs.S3FileSystem(
        asynchronous=True,
        skip_instance_cache=True,  # fsspec would share it with others, who could close it
        endpoint_url=access.endpoint_url or None,
        key=access.access_key_id or None,
        secret=access.secret_access_key or None,
        client_kwargs={"region_name": access.region} if access.region else {},
        config_kwargs={
            "connect_timeout": access.timeout_s,
            "read_timeout": access.timeout_s,
            "retries": {"total_max_attempts": MAX_ATTEMPTS, "mode": "standard"},
        },
    )


@contextmanager
def translated(where: str) -> Iterator[None]:
    """Turn what S3 and the network raise into SourceUnavailable, naming where and why."""
    try:
        yield
    except ClientError as error:
        raise SourceUnavailable(f"{where}: {_reason(error)}") from error
    except (BotoCoreError, aiohttp.ClientError, TimeoutError, OSError) as error:
        raise SourceUnavailable(f"{where} cannot be read: {error or type(error).__name__}") from error


def code(error: ClientError) -> str:
    """Return the service's error code; of a HEAD, which has no body, the HTTP status."""
    return str(error.response.get("Error", {}).get("Code", ""))


def _reason(error: ClientError) -> str:
    if code(error) in CHANGED:
        return "changed while it was read"
    if code(error) in MISSING:
        return "is gone"
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if status in (401, 403):
        return f"S3 denies access ({code(error)}): are key, region and policy right?"
    return f"S3 answers {code(error)}"
