"""S3Source: adapters in allowed buckets, each file exactly as it was when it was registered.

    s3://<bucket>/<prefix>#<file>=version:<id>&<file>=etag:<tag>

The fragment is the control plane's, see its `resolvers/s3_location`. It names every file, so no
listing is asked for, and pins its bytes: a file is read by version, or else only if its ETag still
matches. A read that is cut goes on where it was, under the same pin. The connections live on fsspec's
event-loop thread; loader threads wait for it, the step loop never does.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Any
from urllib.parse import parse_qsl

import aiohttp
import s3fs
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    IncompleteReadError,
    ResponseStreamingError,
)
from fsspec.asyn import sync

from data_plane.errors import AdapterRefused, AdapterUnreadable

SCHEME = "s3"
CHUNK_BYTES = 1 << 20
MAX_ATTEMPTS = 3  # of one request, by botocore, with its back-off
MAX_CUTS = 3  # a body that ends early is continued this often
CUT = (aiohttp.ClientError, HTTPClientError, IncompleteReadError, ResponseStreamingError, TimeoutError)
MISSING = frozenset({"404", "NoSuchKey", "NoSuchBucket", "NoSuchVersion"})
CHANGED = frozenset({"412", "PreconditionFailed"})


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Access:
    """How a service is reached. Without a key, botocore looks where it always does (role, profile)."""

    endpoint_url: str = ""  # empty: AWS
    region: str = ""
    access_key_id: str = ""
    secret_access_key: str = field(default="", repr=False)
    timeout_s: float = 10.0  # to connect, and between two pieces of an answer


class S3Source:
    """Opens the s3:// URIs of one service; connects at the first."""

    def __init__(self, buckets: Collection[str], access: S3Access) -> None:
        self._buckets = buckets
        self._access = access
        self._connecting = Lock()
        self._filesystem: Any = None

    def open(self, uri: str) -> "S3Files":
        """The files that a pinned URI names; raise AdapterRefused for other buckets and other URIs."""
        address, _, fragment = uri.partition("#")
        bucket, _, prefix = address.removeprefix(f"{SCHEME}://").partition("/")
        if bucket not in self._buckets:
            raise AdapterRefused(f"{address} is outside of s3_buckets")
        if any(part in ("", ".", "..") for part in prefix.split("/")):
            raise AdapterRefused(f"{address} has empty, '.' or '..' parts")
        return S3Files(self, bucket, prefix, _pins(address, fragment))

    def read(self, what: str, request: dict[str, str], max_bytes: int) -> bytes:
        """The whole object that a request of `get_object` names."""
        with _translated(what):
            filesystem = self._connected()
            data: bytes = sync(filesystem.loop, _read, filesystem, what, request, max_bytes)
            return data

    def _connected(self) -> Any:
        with self._connecting:
            if self._filesystem is None:
                self._filesystem = _filesystem(self._access)
            return self._filesystem


@dataclass(frozen=True, slots=True)
class S3Files:
    """Implements `AdapterFiles` for pinned objects."""

    source: S3Source
    bucket: str
    prefix: str
    pins: Mapping[str, dict[str, str]]  # argument of `get_object`, by file name

    def names(self) -> list[str]:
        """See AdapterFiles."""
        return sorted(self.pins)

    def read(self, name: str, *, max_bytes: int) -> bytes:
        """See AdapterFiles."""
        what = f"{SCHEME}://{self.bucket}/{self.prefix}/{name}"
        if name not in self.pins:
            raise AdapterRefused(f"{what} is not pinned by its adapter's URI")
        request = {"Bucket": self.bucket, "Key": f"{self.prefix}/{name}", **self.pins[name]}
        return self.source.read(what, request, max_bytes)


def _pins(address: str, fragment: str) -> dict[str, dict[str, str]]:
    pins: dict[str, dict[str, str]] = {}
    for name, pin in parse_qsl(fragment):
        kind, _, value = pin.partition(":")
        if "/" in name or not value or kind not in ("version", "etag"):
            raise AdapterRefused(f"{address} pins {name!r} to {pin!r}, which is no version or etag")
        pins[name] = {"VersionId": value} if kind == "version" else {"IfMatch": f'"{value}"'}
    if not pins:
        raise AdapterRefused(f"{address} does not say which bytes are meant: register it again")
    return pins


async def _read(filesystem: Any, what: str, request: dict[str, str], max_bytes: int) -> bytes:
    client = await filesystem.set_session()
    chunks: list[bytes] = []
    num_bytes, size_bytes, num_cuts = 0, None, 0
    while size_bytes is None or num_bytes < size_bytes:
        rest = {"Range": f"bytes={num_bytes}-"} if num_bytes else {}
        answer = await client.get_object(**request, **rest)
        body = answer["Body"]
        try:
            size_bytes = _checked_size(what, size_bytes, num_bytes + answer["ContentLength"], max_bytes)
            async for chunk in body.iter_chunks(CHUNK_BYTES):
                chunks.append(chunk)
                num_bytes += len(chunk)
        except CUT as error:
            num_cuts += 1
            if num_cuts > MAX_CUTS:
                raise AdapterUnreadable(f"{what} ended early {num_cuts} times") from error
        finally:
            body.close()
    return b"".join(chunks)


def _checked_size(what: str, known: int | None, size_bytes: int, max_bytes: int) -> int:
    if size_bytes > max_bytes:
        raise AdapterRefused(f"{what} has {size_bytes} bytes, at most {max_bytes} can be needed")
    if known not in (None, size_bytes):
        raise AdapterUnreadable(f"{what}: S3 gave other bytes than it was asked for")
    return size_bytes


def _filesystem(access: S3Access) -> Any:
    return s3fs.S3FileSystem(
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
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in CHANGED:
            raise AdapterRefused(f"{what} was overwritten since it was registered: publish it") from error
        reason = "does not exist" if code in MISSING else f"cannot be read: S3 answers {code}"
        raise AdapterUnreadable(f"{what} {reason}") from error
    except (BotoCoreError, aiohttp.ClientError, TimeoutError, OSError) as error:
        raise AdapterUnreadable(f"{what} cannot be read: {str(error) or type(error).__name__}") from error
