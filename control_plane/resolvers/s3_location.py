"""S3Location: the directory of an adapter in a bucket, as a URI, with the very bytes that were read.

    s3://<bucket>/<prefix>                                      what people write
    s3://<bucket>/<prefix>#<file>=version:<id>&<file>=etag:<tag>  what the registry keeps

The fragment pins every file to the version (in a versioned bucket) or the ETag that was read, so that
a worker reads the same bytes or none. A worker parses it on its own, since neither plane imports the
other; tests/contracts holds them together.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

from control_plane.errors import Refused

SCHEME = "s3://"


@dataclass(frozen=True, slots=True)
class S3Pin:
    """Which bytes of an object: those of a version, or those with an ETag."""

    version: str  # empty: the bucket is not versioned
    etag: str

    def __str__(self) -> str:
        return f"version:{self.version}" if self.version else f"etag:{self.etag}"


@dataclass(frozen=True, slots=True)
class S3Location:
    """A prefix under which the files of one adapter are."""

    bucket: str
    prefix: str  # without slashes at its ends

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.prefix}"

    def key(self, name: str) -> str:
        """Return the key of a file."""
        return f"{self.prefix}/{name}"

    def pinned(self, pins: Mapping[str, S3Pin]) -> str:
        """Return the URI of exactly these bytes."""
        return f"{self}#{urlencode(sorted((name, str(pin)) for name, pin in pins.items()))}"


def parse_location(uri: str) -> S3Location:
    """Read an s3:// URI; its pins, if any, are left out: resolving again means what is there now."""
    bucket, _, path = uri.removeprefix(SCHEME).partition("#")[0].partition("/")
    prefix = path.rstrip("/")
    # S3 has no `..`, but what stands between us and the bucket may have.
    if not bucket or any(part in ("", ".", "..") for part in prefix.split("/")):
        raise Refused(f"{uri!r} must be s3://<bucket>/<prefix>, without empty, '.' or '..' parts")
    if any(ord(character) < ord(" ") for character in uri):
        raise Refused(f"{uri!r} has a control character")
    return S3Location(bucket, prefix)
