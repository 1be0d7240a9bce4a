"""FilesystemResolver: PEFT adapter directories under allowed roots.

Owns which files of a directory make an adapter, their checks and their digest. A source is an
absolute path or a file:// URI; without one, `<root>/<tenant>/<name>` is looked for. Invariant: no
byte of tensor data is interpreted here, and nothing outside the roots is read.
"""

import asyncio
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from control_plane.errors import Refused
from control_plane.resolvers.peft_config import parse_config
from control_plane.resolvers.roots import Roots
from control_plane.resolvers.safetensors_header import check_header
from control_plane.resolvers.types import Resolved, ResolveRequest

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
INDEX = "adapter_model.safetensors.index.json"
PICKLED = "adapter_model.bin"
MAX_JSON_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class _FileSum:
    """A file that was read."""

    name: str
    sha256: str
    size_bytes: int


class FilesystemResolver:
    """Reads adapters from local directories."""

    name = "filesystem"

    def __init__(self, roots: Sequence[Path]) -> None:
        self._roots = Roots(roots)

    async def resolve(self, request: ResolveRequest) -> Resolved | None:
        """Find and read the directory on a thread: hashing takes seconds for gigabytes."""
        return await asyncio.to_thread(self._resolve, request)

    def _resolve(self, request: ResolveRequest) -> Resolved | None:
        for candidate in self._candidates(request):
            directory = self._roots.canonical(candidate)
            if request.confined:
                self._roots.check_inside(directory, request.tenant)
            if directory.is_dir():
                return self._read(directory)
        return None

    def _candidates(self, request: ResolveRequest) -> tuple[Path, ...]:
        if not request.source:
            return tuple(self._roots.candidates(request.tenant, request.name))
        if "\0" in request.source:
            raise Refused("a path has no NUL character")
        if request.source.startswith("/"):
            return (Path(request.source),)
        url = urlsplit(request.source)
        if url.scheme == "file" and url.netloc in ("", "localhost"):
            return (Path(unquote(url.path)),)
        return ()  # another resolver's

    def _read(self, directory: Path) -> Resolved:
        content, config_sum = self._read_json(directory, CONFIG)
        config = parse_config(str(directory / CONFIG), content)
        weights = self._read_weights(directory)
        return Resolved(
            uri=str(directory),
            digest=_digest((config_sum, *weights)),
            rank=config.rank,
            target_modules=config.target_modules,
            size_bytes=sum(file.size_bytes for file in weights if file.name != INDEX),
            base_model_hint=config.base_model,
        )

    def _read_weights(self, directory: Path) -> tuple[_FileSum, ...]:
        """Read the one weight file, or the index and its shards when there is no such file."""
        if os.path.lexists(directory / WEIGHTS):
            return (self._read_tensors(directory, WEIGHTS),)
        if os.path.lexists(directory / INDEX):
            content, index_sum = self._read_json(directory, INDEX)
            shards = _shards(str(directory / INDEX), content)
            return (index_sum, *(self._read_tensors(directory, shard) for shard in shards))
        if os.path.lexists(directory / PICKLED):
            raise Refused(f"{directory} has only {PICKLED}, which can run code: convert it to {WEIGHTS}")
        raise Refused(f"{directory} has no {WEIGHTS}")

    def _read_json(self, directory: Path, name: str) -> tuple[bytes, _FileSum]:
        path = directory / name
        if not os.path.lexists(path):
            raise Refused(f"{directory} has no {name}")
        with self._roots.open(path) as file:
            content = file.read(MAX_JSON_BYTES + 1)
        if len(content) > MAX_JSON_BYTES:
            raise Refused(f"{path} is over the limit of {MAX_JSON_BYTES} bytes")
        return content, _FileSum(name, hashlib.sha256(content).hexdigest(), len(content))

    def _read_tensors(self, directory: Path, name: str) -> _FileSum:
        path = directory / name
        if not os.path.lexists(path):
            raise Refused(f"{directory} has no {name}, which its index names")
        with self._roots.open(path) as file:
            size_bytes = os.fstat(file.fileno()).st_size
            check_header(str(path), file, size_bytes)
            file.seek(0)
            return _FileSum(name, hashlib.file_digest(file, "sha256").hexdigest(), size_bytes)


def _shards(where: str, content: bytes) -> list[str]:
    """Return the weight files that an index names: plain names beside it."""
    try:
        shards = sorted(set(json.loads(content)["weight_map"].values()))
    except (ValueError, RecursionError, KeyError, AttributeError, TypeError) as error:
        raise Refused(f"{where} must hold a JSON object with a weight_map of file names") from error
    for shard in shards:
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise Refused(f"{where} names the weight file {shard!r}, which is no safetensors file beside it")
    if not shards:
        raise Refused(f"{where} names no weight file")
    return shards


def _digest(files: Sequence[_FileSum]) -> str:
    """Return what `sha256sum <files in order of name> | sha256sum` prints."""
    lines = (f"{file.sha256}  {file.name}\n" for file in sorted(files, key=lambda file: file.name))
    return f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"
