"""An adapter's safetensors files as `Weights`: bytes in memory, of which nothing is copied.

Invariant: the bytes were verified, and are what is packed.
"""

import hashlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from data_plane.adapters.safetensors_header import header_of, stored_tensors
from data_plane.adapters.weights import StoredTensor
from data_plane.errors import AdapterRefused
from kernels.cpu.matrices import Bytes


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """Implements `Weights`; every file is a source."""

    files: Mapping[str, bytes]

    @property
    def key(self) -> Hashable:
        """See Weights."""
        return tuple(_key(name, data) for name, data in self.files.items())

    def stored(self) -> Mapping[str, StoredTensor]:
        """See Weights."""
        found: dict[str, StoredTensor] = {}
        for i, (name, data) in enumerate(self.files.items()):
            with _malformed(name):
                tensors = stored_tensors(data, i)
            twice = next((key for key in tensors if key in found), None)
            if twice is not None:
                raise AdapterRefused(f"tensor {twice} is in more than one file")
            found |= tensors
        return found

    def sources(self) -> Sequence[Bytes]:
        """See Weights."""
        return [np.frombuffer(data, np.uint8) for data in self.files.values()]


def _key(name: str, data: bytes) -> Hashable:
    with _malformed(name):
        header = header_of(data)
    # Its digest, because a header may have megabytes, and keys are kept.
    return hashlib.sha256(header).digest(), len(data)


@contextmanager
def _malformed(name: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise AdapterRefused(f"{name} is not a whole safetensors file: {error}") from error
