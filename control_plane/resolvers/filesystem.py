"""FilesystemResolver: PEFT adapter directories under allowed roots.

A source is an absolute path or a file:// URI; without one, `<root>/<tenant>/<name>` is looked for.
Invariant: nothing outside the roots is read, and no file is read on the event loop.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

from control_plane.errors import Refused
from control_plane.resolvers.adapter_files import MAX_JSON_BYTES, FileSum, read_adapter
from control_plane.resolvers.roots import Roots
from control_plane.resolvers.safetensors_header import check_header
from control_plane.resolvers.threads import Threads
from control_plane.resolvers.types import Resolved, ResolveRequest


class FilesystemResolver:
    """Reads adapters from local directories."""

    name = "filesystem"

    def __init__(self, roots: Sequence[Path]) -> None:
        self._roots = Roots(roots)
        self._threads = Threads(self.name)

    async def resolve(self, request: ResolveRequest) -> Resolved | None:
        """See Resolver."""
        directory = await self._threads.run(partial(self._find, request))
        if directory is None:
            return None
        return await read_adapter(_Directory(self._roots, directory, self._threads))

    async def close(self) -> None:
        """See Resolver."""
        self._threads.close()

    def _find(self, request: ResolveRequest) -> Path | None:
        for candidate in self._candidates(request):
            directory = self._roots.canonical(candidate)
            if request.confined:
                self._roots.check_inside(directory, request.tenant)
            if os.path.isdir(directory):  # not Path's own, which raises for a name that is too long
                return directory
        return None

    def _candidates(self, request: ResolveRequest) -> tuple[Path, ...]:
        if not request.source:
            return tuple(self._roots.candidates(request.tenant, request.name))
        path = _path_of(request.source)
        if path is None:
            return ()  # another resolver's
        if "\0" in path:
            raise Refused("a path has no NUL character")
        return (Path(path),)


def _path_of(source: str) -> str | None:
    """Return the absolute path that a source names; None when it is none."""
    if source.startswith("/"):
        return source
    try:
        url = urlsplit(source)
    except ValueError:  # a bracket in what should be a host
        return None
    return unquote(url.path) if url.scheme == "file" and url.netloc in ("", "localhost") else None


@dataclass(frozen=True, slots=True)
class _Directory:
    """Implements `AdapterFiles`, on threads: a disk may hang, and hashing takes seconds for gigabytes."""

    roots: Roots
    path: Path
    threads: Threads

    @property
    def where(self) -> str:
        return str(self.path)

    @property
    def uri(self) -> str:
        return str(self.path)

    async def has(self, name: str) -> bool:
        return await self.threads.run(partial(os.path.lexists, self.path / name))

    async def read_json(self, name: str) -> bytes:
        return await self.threads.run(partial(self._read_json, self.path / name))

    async def read_tensors(self, name: str) -> FileSum:
        return await self.threads.run(partial(self._read_tensors, self.path / name))

    def _read_json(self, path: Path) -> bytes:
        with self.roots.open(path) as file:
            content = file.read(MAX_JSON_BYTES + 1)
        if len(content) > MAX_JSON_BYTES:
            raise Refused(f"{path} is over the limit of {MAX_JSON_BYTES} bytes")
        return content

    def _read_tensors(self, path: Path) -> FileSum:
        with self.roots.open(path) as file:
            size_bytes = os.fstat(file.fileno()).st_size
            check_header(str(path), file, size_bytes)
            file.seek(0)
            return FileSum(path.name, hashlib.file_digest(file, "sha256").hexdigest(), size_bytes)
