"""Which files make an adapter, how they are checked, and what their digest is.

Knows no kind of place: files are asked for through `AdapterFiles`. Invariant: no byte of tensor data
is interpreted here.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Protocol

from control_plane.errors import Refused
from control_plane.resolvers.peft_config import parse_config
from control_plane.resolvers.types import Resolved

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
INDEX = "adapter_model.safetensors.index.json"
PICKLED = "adapter_model.bin"
MAX_JSON_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class FileSum:
    """A file that was read."""

    name: str
    sha256: str
    size_bytes: int


class AdapterFiles(Protocol):
    """The files of one adapter at one place. Raises SourceUnavailable when the place does not answer."""

    @property
    def where(self) -> str:
        """What messages call the directory."""

    @property
    def uri(self) -> str:
        """Where a worker finds what was read; complete once everything was."""

    async def has(self, name: str) -> bool:
        """Whether there is such a file, of whatever kind."""

    async def read_json(self, name: str) -> bytes:
        """Read a file that is there; raise Refused when it is over MAX_JSON_BYTES."""

    async def read_tensors(self, name: str) -> FileSum:
        """Check the header of a safetensors file that is there, and hash all of it."""


async def read_adapter(files: AdapterFiles) -> Resolved:
    """Read and check the adapter; raise Refused naming what can never be served, and why."""
    content = await _read_json(files, CONFIG)
    config = parse_config(f"{files.where}/{CONFIG}", content)
    weights = await _read_weights(files)
    return Resolved(
        uri=files.uri,
        digest=_digest((_sum(CONFIG, content), *weights)),
        rank=config.rank,
        target_modules=config.target_modules,
        size_bytes=sum(file.size_bytes for file in weights if file.name != INDEX),
        base_model_hint=config.base_model,
    )


async def _read_weights(files: AdapterFiles) -> tuple[FileSum, ...]:
    """Read the one weight file, or the index and its shards when there is no such file."""
    if await files.has(WEIGHTS):
        return (await files.read_tensors(WEIGHTS),)
    if await files.has(INDEX):
        content = await _read_json(files, INDEX)
        shards = _shards(f"{files.where}/{INDEX}", content)
        return (_sum(INDEX, content), *[await _read_shard(files, shard) for shard in shards])
    if await files.has(PICKLED):
        raise Refused(f"{files.where} has only {PICKLED}, which can run code: convert it to {WEIGHTS}")
    raise Refused(f"{files.where} has no {WEIGHTS}")


async def _read_json(files: AdapterFiles, name: str) -> bytes:
    if not await files.has(name):
        raise Refused(f"{files.where} has no {name}")
    return await files.read_json(name)


async def _read_shard(files: AdapterFiles, name: str) -> FileSum:
    if not await files.has(name):
        raise Refused(f"{files.where} has no {name}, which its index names")
    return await files.read_tensors(name)


def _sum(name: str, content: bytes) -> FileSum:
    return FileSum(name, hashlib.sha256(content).hexdigest(), len(content))


def _shards(where: str, content: bytes) -> list[str]:
    """Return the weight files that an index names: plain names beside it."""
    try:
        shards = sorted(set(json.loads(content)["weight_map"].values()))
    except (ValueError, RecursionError, KeyError, AttributeError, TypeError) as error:
        raise Refused(f"{where} must hold a JSON object with a weight_map of file names") from error
    for shard in shards:
        if (
            not isinstance(shard, str)
            or PurePosixPath(shard).name != shard
            or not shard.endswith(".safetensors")
        ):
            raise Refused(f"{where} names the weight file {shard!r}, which is no safetensors file beside it")
    if not shards:
        raise Refused(f"{where} names no weight file")
    return shards


def _digest(files: Sequence[FileSum]) -> str:
    """Return what `sha256sum <files in order of name> | sha256sum` prints."""
    lines = (f"{file.sha256}  {file.name}\n" for file in sorted(files, key=lambda file: file.name))
    return f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"
