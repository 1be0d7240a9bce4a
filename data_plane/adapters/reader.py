"""From an adapter's source to packed weights: read, verify, parse, match, pack.

Every file is read once, into memory; what is hashed is what is parsed, so a file that changes
meanwhile cannot be served under the wrong digest. Runs on loader threads and keeps no state.
"""

import hashlib
import io
import json
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from data_plane.adapters.files import AdapterDirectory
from data_plane.adapters.layout import AdapterLayout
from data_plane.adapters.matching import match_tensors
from data_plane.adapters.packing import PackedLora, pack
from data_plane.adapters.peft_config import PeftConfig
from data_plane.adapters.peft_json import FILE_NAME, parse_peft_config
from data_plane.adapters.revision import AdapterSource
from data_plane.errors import AdapterRefused, AdapterUnreadable

WEIGHTS = "adapter_model.safetensors"
INDEX = "adapter_model.safetensors.index.json"
BIN = "adapter_model.bin"
MAX_CONFIG_BYTES = 4 << 20
HEADER_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class PeftReader:
    """Implements `AdapterReader` for PEFT directories."""

    layout: AdapterLayout
    roots: Sequence[Path]
    max_rank: int
    dtype: torch.dtype
    allow_bin: bool = False

    def read(self, source: AdapterSource) -> PackedLora:
        """Read, verify and pack; raise AdapterRefused or AdapterUnreadable."""
        try:
            files = self._read_files(AdapterDirectory(source.uri, self.roots))
            _verify(files, source.revision.digest)
            config = parse_peft_config(files[FILE_NAME])
            self._refuse_ranks(config)
            pairs = match_tensors(_parse_weights(files), config, self.layout)
            return pack(pairs, self.layout, self.dtype)
        except (AdapterRefused, AdapterUnreadable) as error:
            revision = source.revision
            raise type(error)(f"adapter {revision.name}@{revision.number}: {error}") from error

    def _read_files(self, directory: AdapterDirectory) -> dict[str, bytes]:
        names = directory.names()
        files = {
            FILE_NAME: directory.read(FILE_NAME, max_bytes=MAX_CONFIG_BYTES),
        }
        if WEIGHTS in names:
            weights = [WEIGHTS]
        elif INDEX in names:
            files[INDEX] = directory.read(INDEX, max_bytes=MAX_CONFIG_BYTES)
            weights = _shards(files[INDEX])
        elif BIN in names and self.allow_bin:
            weights = [BIN]
        elif BIN in names:
            raise AdapterRefused(f"{BIN} can run code when it is read; save the adapter as {WEIGHTS}")
        else:
            raise AdapterUnreadable(f"{WEIGHTS} does not exist")
        for name in weights:
            files[name] = directory.read(name, max_bytes=self._max_weight_bytes)
        return files

    @property
    def _max_weight_bytes(self) -> int:
        """All modules at the largest rank in 8-byte floats: every tensor is applied, so none needs more."""
        return self.max_rank * self.layout.row_elements * 8 + HEADER_BYTES

    def _refuse_ranks(self, config: PeftConfig) -> None:
        for name in self.layout.targets:
            if config.targets(name) and config.rank(name) > self.max_rank:
                raise AdapterRefused(
                    f"{name}: rank {config.rank(name)} is above max_lora_rank {self.max_rank}"
                )


def content_digest(files: dict[str, bytes]) -> str:
    """The digest of protos/registry/v1/registry.proto over files that were read."""
    lines = (f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(files.items()))
    return f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"


def _verify(files: dict[str, bytes], expected: str) -> None:
    found = content_digest(files)
    if found != expected:
        raise AdapterRefused(f"digest {found}, expected {expected}: the files are not those of the revision")


def _shards(index: bytes) -> list[str]:
    try:
        names = sorted(set(json.loads(index)["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise AdapterRefused(f"{INDEX} has no weight_map of file names") from error
    for name in names:
        if not isinstance(name, str) or "/" in name or not name.endswith(".safetensors"):
            raise AdapterRefused(f"{INDEX}: {name!r} is not the name of a safetensors file beside it")
    return names


def _parse_weights(files: dict[str, bytes]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, data in files.items():
        if name in (FILE_NAME, INDEX):
            continue
        for key, tensor in (_load_bin(data) if name == BIN else _load_safetensors(name, data)).items():
            if key in tensors:
                raise AdapterRefused(f"tensor {key} is in more than one file")
            tensors[key] = tensor
    return tensors


def _load_safetensors(name: str, data: bytes) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise AdapterRefused(f"{name} is not a whole safetensors file: {error}") from error
    return tensors


def _load_bin(data: bytes) -> dict[str, Tensor]:
    try:
        tensors = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise AdapterRefused(f"{BIN} is not a file of tensors: {error}") from error
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise AdapterRefused(f"{BIN} is not a mapping of names to tensors")
    return tensors
