"""S3Files: the files of one adapter under a prefix, each pinned when it is first looked at.

Implements `AdapterFiles`. Invariant: all bytes of a file are those of its pin, however often reading
is interrupted; a file that is overwritten meanwhile is unavailable, never a mixture.
"""

import hashlib
import io
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
from botocore.exceptions import ClientError, HTTPClientError, IncompleteReadError, ResponseStreamingError

from control_plane.errors import Refused, SourceUnavailable
from control_plane.resolvers.adapter_files import MAX_JSON_BYTES, FileSum
from control_plane.resolvers.s3_client import MISSING, S3Client, code, translated
from control_plane.resolvers.s3_location import S3Location, S3Pin
from control_plane.resolvers.safetensors_header import LENGTH_BYTES, MAX_HEADER_BYTES, check_header

CHUNK_BYTES = 256 << 10  # hashed in 0.2 ms, for which the event loop stands still
HEADER_GUESS_BYTES = 128 << 10  # the header of most adapters, in one request
MAX_CUTS = 3  # a body that ends early is continued this often
# What aiobotocore lets through when a body ends early or stalls.
CUT = (aiohttp.ClientError, HTTPClientError, IncompleteReadError, ResponseStreamingError, TimeoutError)


@dataclass(frozen=True, slots=True)
class _Object:
    """An object as it was when it was first looked at."""

    pin: S3Pin
    size_bytes: int


class S3Files:
    """The objects `<prefix>/<name>`."""

    def __init__(self, client: S3Client, location: S3Location) -> None:
        self._client = client
        self._location = location
        self._objects: dict[str, _Object] = {}
        self._read: dict[str, S3Pin] = {}

    @property
    def where(self) -> str:
        """See AdapterFiles."""
        return str(self._location)

    @property
    def uri(self) -> str:
        """See AdapterFiles."""
        return self._location.pinned(self._read)

    async def has(self, name: str) -> bool:
        """See AdapterFiles."""
        if name not in self._objects:
            found = await self._look(name)
            if found is None:
                return False
            self._objects[name] = found
        return True

    async def read_json(self, name: str) -> bytes:
        """See AdapterFiles."""
        size_bytes = self._objects[name].size_bytes
        if size_bytes > MAX_JSON_BYTES:
            raise Refused(f"{self._where(name)} is over the limit of {MAX_JSON_BYTES} bytes")
        return await self._range(name, 0, size_bytes)

    async def read_tensors(self, name: str) -> FileSum:
        """See AdapterFiles. The header is read first: garbage is refused before it is transferred."""
        size_bytes = self._objects[name].size_bytes
        check_header(self._where(name), io.BytesIO(await self._header(name)), size_bytes)
        sha256 = hashlib.sha256()
        with translated(self._where(name)):
            async for chunk in self._stream(name, 0, size_bytes):
                sha256.update(chunk)
        return FileSum(name, sha256.hexdigest(), size_bytes)

    async def check_unchanged(self) -> None:
        """Raise SourceUnavailable if a file was replaced since it was read: a pair would be half old."""
        for name, pin in self._read.items():
            now = await self._look(name)
            if now is None or now.pin != pin:
                raise SourceUnavailable(f"{self._where(name)} changed while it was read")

    async def _look(self, name: str) -> _Object | None:
        with translated(self._where(name)):
            try:
                head = await self._client.call("head_object", **self._address(name))
            except ClientError as error:
                if code(error) in MISSING:
                    return None
                raise
        version = head.get("VersionId", "null")  # "null": written before the bucket was versioned
        pin = S3Pin("" if version == "null" else version, head["ETag"].strip('"'))
        return _Object(pin, head["ContentLength"])

    async def _header(self, name: str) -> bytes:
        size_bytes = self._objects[name].size_bytes
        start = await self._range(name, 0, min(size_bytes, HEADER_GUESS_BYTES))
        end = LENGTH_BYTES + int.from_bytes(start[:LENGTH_BYTES], "little")
        if end <= len(start) or end > min(size_bytes, LENGTH_BYTES + MAX_HEADER_BYTES):
            return start  # whole, or refused for its length
        return start + await self._range(name, len(start), end)

    async def _range(self, name: str, begin: int, end: int) -> bytes:
        with translated(self._where(name)):
            return b"".join([chunk async for chunk in self._stream(name, begin, end)])

    async def _stream(self, name: str, begin: int, end: int) -> AsyncIterator[bytes]:
        """Yield the bytes of a range; continue after a cut, under the same pin."""
        num_cuts = 0
        while begin < end:
            body = await self._get(name, begin, end)
            try:
                async for chunk in body.iter_chunks(CHUNK_BYTES):
                    begin += len(chunk)
                    yield chunk
            except CUT as error:
                num_cuts += 1
                if num_cuts > MAX_CUTS:
                    raise SourceUnavailable(f"{self._where(name)} ended early {num_cuts} times") from error
            finally:
                body.close()
        self._read[name] = self._objects[name].pin

    async def _get(self, name: str, begin: int, end: int) -> Any:
        pin = self._objects[name].pin
        pinned = {"VersionId": pin.version} if pin.version else {"IfMatch": f'"{pin.etag}"'}
        bytes_range = f"bytes={begin}-{end - 1}"
        answer = await self._client.call("get_object", **self._address(name), **pinned, Range=bytes_range)
        if answer["ContentLength"] != end - begin:
            answer["Body"].close()
            raise SourceUnavailable(f"{self._where(name)}: S3 gave other bytes than {bytes_range}")
        return answer["Body"]

    def _address(self, name: str) -> dict[str, str]:
        return {"Bucket": self._location.bucket, "Key": self._location.key(name)}

    def _where(self, name: str) -> str:
        return f"{self._location}/{name}"
