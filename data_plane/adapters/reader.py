"""From an adapter's source to packed weights: the files as bytes, verified, then packed from where they lie.

Every file is read once, into memory; what is hashed is what is packed, so a file that changes
meanwhile cannot be served under the wrong digest. Runs on loader threads and keeps no state.
"""

import hashlib
import io
import json
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from data_plane.adapters.file_names import BIN, EXTRA_VOCABULARY, INDEX, WEIGHTS
from data_plane.adapters.packer import LoraPacker
from data_plane.adapters.packing import PackedLora
from data_plane.adapters.peft_json import FILE_NAME, parse_peft_config
from data_plane.adapters.places import AdapterFiles, Remotes, open_files
from data_plane.adapters.revision import AdapterSource
from data_plane.adapters.types import Keep
from data_plane.adapters.weight_files import WeightFiles
from data_plane.adapters.weights import GivenTensors, Weights
from data_plane.errors import AdapterRefused, AdapterUnreadable

MAX_CONFIG_BYTES = 4 << 20
HEADER_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class PeftReader:
    """Implements `AdapterReader` for PEFT directories."""

    packer: LoraPacker
    roots: Sequence[Path]
    allow_bin: bool = False
    remotes: Remotes = field(default_factory=dict)

    def read(self, source: AdapterSource, *, keep: Keep | None = None) -> PackedLora:
        """See AdapterReader."""
        try:
            files = self._read_files(open_files(source.uri, self.roots, self.remotes))
            _verify(files, source.revision.digest)
            packed = self._pack(files)
        except (AdapterRefused, AdapterUnreadable) as error:
            revision = source.revision
            raise type(error)(f"adapter {revision.name}@{revision.number}: {error}") from error
        if keep is not None:
            keep(files)
        return packed

    def read_directory(self, uri: str) -> tuple[str, PackedLora]:
        """A checkpoint that nobody registered: the digest its files have now, and what they hold."""
        files = self._read_files(open_files(uri, self.roots, self.remotes))
        return content_digest(files), self._pack(files)

    def _pack(self, files: dict[str, bytes]) -> PackedLora:
        return self.packer.pack_weights(_weights(files), parse_peft_config(files[FILE_NAME]))

    def _read_files(self, directory: AdapterFiles) -> dict[str, bytes]:
        names = directory.names()
        files = {
            FILE_NAME: directory.read(FILE_NAME, max_bytes=MAX_CONFIG_BYTES),
        }
        if EXTRA_VOCABULARY in names:
            raise AdapterRefused(f"{EXTRA_VOCABULARY}: lora_extra_vocab_size is not supported")
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
            files[name] = directory.read(name, max_bytes=self.packer.max_file_bytes() + HEADER_BYTES)
        return files


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
        # Printable, because no file's name has a NUL or half a character, and opening one raises.
        if (
            not isinstance(name, str)
            or "/" in name
            or not name.isprintable()
            or not name.endswith(".safetensors")
        ):
            raise AdapterRefused(f"{INDEX}: {name!r} is not the name of a safetensors file beside it")
    return names


def _weights(files: dict[str, bytes]) -> Weights:
    if BIN in files:
        return GivenTensors(_load_bin(files[BIN]))
    return WeightFiles({name: data for name, data in files.items() if name not in (FILE_NAME, INDEX)})


def _load_bin(data: bytes) -> dict[str, Tensor]:
    try:
        tensors = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise AdapterRefused(f"{BIN} is not a file of tensors: {error}") from error
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in tensors.items()
    ):
        raise AdapterRefused(f"{BIN} is not a mapping of names to tensors")
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided:
            raise AdapterRefused(f"tensor {name}: {tensor.layout} is not a plain tensor")
    return tensors
