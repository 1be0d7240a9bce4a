"""HubFiles: the files of one adapter at one commit of a repository.

Implements `AdapterFiles`. Weights are streamed in pieces, never stored; a commit is immutable, so
pieces that are read again are the same.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import httpx2
from huggingface_hub import HfFileSystem

from control_plane.errors import Refused, SourceUnavailable
from control_plane.resolvers.adapter_files import MAX_JSON_BYTES, FileSum
from control_plane.resolvers.hub_location import HubLocation
from control_plane.resolvers.safetensors_header import check_header
from control_plane.resolvers.threads import Threads

BLOCK_BYTES = 8 << 20  # one request


@dataclass(frozen=True, slots=True)
class HubAccess:
    """Which hub, and as whom."""

    endpoint: str | None  # None: huggingface.co
    token: str | Literal[False] = field(repr=False)  # False: as nobody


class HubFiles:
    """The files of `location` at a commit. `names` are the paths of the whole repository."""

    def __init__(
        self, access: HubAccess, location: HubLocation, commit: str, names: frozenset[str], threads: Threads
    ) -> None:
        self._location = location
        self._commit = commit
        self._names = names
        self._threads = threads
        self._filesystem: Any = HfFileSystem(
            endpoint=access.endpoint, token=access.token, skip_instance_cache=True
        )

    @property
    def where(self) -> str:
        """See AdapterFiles."""
        return str(self._location)

    @property
    def uri(self) -> str:
        """See AdapterFiles."""
        return self._location.pinned(self._commit)

    async def has(self, name: str) -> bool:
        """See AdapterFiles."""
        return self._location.path(name) in self._names

    async def read_json(self, name: str) -> bytes:
        """See AdapterFiles."""
        return await self._threads.run(partial(self._read_json, name))

    async def read_tensors(self, name: str) -> FileSum:
        """See AdapterFiles."""
        return await self._threads.run(partial(self._read_tensors, name))

    def _read_json(self, name: str) -> bytes:
        with self._open(name) as file:
            if file.size > MAX_JSON_BYTES:
                raise Refused(f"{self.where}/{name} is over the limit of {MAX_JSON_BYTES} bytes")
            content: bytes = file.read()
            return content

    def _read_tensors(self, name: str) -> FileSum:
        with self._open(name) as file:
            check_header(f"{self.where}/{name}", file, file.size)
            file.seek(0)
            return FileSum(name, hashlib.file_digest(file, "sha256").hexdigest(), file.size)

    @contextmanager
    def _open(self, name: str) -> Iterator[Any]:
        path = f"{self._location.repo}/{self._location.path(name)}"
        with (
            translated(f"{self.where}/{name}"),
            self._filesystem.open(path, "rb", revision=self._commit, block_size=BLOCK_BYTES) as file,
        ):
            yield file


@contextmanager
def translated(where: str) -> Iterator[None]:
    """Turn what the hub and the network raise into SourceUnavailable, naming where and why."""
    try:
        yield
    except (httpx2.HTTPError, OSError) as error:  # HfHubHTTPError is one of them
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise SourceUnavailable(f"{where} cannot be read: {reason}") from error
