"""The header of a safetensors file: which tensors it has, of what kind, and where.

    length of the header, 8 bytes little-endian | header, JSON | the tensors' numbers, one after the other

(https://huggingface.co/docs/safetensors.) The library would copy every tensor to say so much, so what it
checks is checked here: the numbers of the tensors fill the file, without a gap or an overlap, and are as many
as dtypes and shapes say. Raises ValueError with what is wrong.
"""

import json
from collections.abc import Mapping
from typing import Any

import torch

from data_plane.adapters.weights import StoredTensor

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000  # the library's
MAX_NUMBER = 1 << 63  # that a size may have, or a product of them
METADATA = "__metadata__"
FIELDS = frozenset({"dtype", "shape", "data_offsets"})
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "C64": torch.complex64,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


def header_of(data: bytes) -> bytes:
    """The JSON, unparsed: files of the same header and length have the same tensors at the same places."""
    length = int.from_bytes(data[:LENGTH_BYTES], "little")
    if len(data) < LENGTH_BYTES or length > min(len(data) - LENGTH_BYTES, MAX_HEADER_BYTES):
        raise ValueError(f"{len(data)} bytes do not hold a header of {length}")
    return data[LENGTH_BYTES : LENGTH_BYTES + length]


def stored_tensors(data: bytes, source: int) -> dict[str, StoredTensor]:
    """Every tensor of a file, which is the source of that number, by its name."""
    header = header_of(data)
    try:
        raw = json.loads(header.decode(), object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError("its header is nested too deeply") from error
    if not isinstance(raw, dict):
        raise ValueError("its header is not an object")
    _check_metadata(raw.pop(METADATA, None))
    begin = LENGTH_BYTES + len(header)
    spans = {name: _span(name, entry) for name, entry in raw.items()}
    _check_cover(spans, len(data) - begin)
    return {
        name: StoredTensor(DTYPES[raw[name]["dtype"]], tuple(raw[name]["shape"]), source, begin + span[0])
        for name, span in spans.items()
    }


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} is in its header twice")
    return found


def _check_metadata(metadata: object) -> None:
    if metadata is None:
        return
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError(f"{METADATA} is not a mapping of texts")


def _span(name: str, entry: object) -> tuple[int, int]:
    """Where a tensor's numbers begin and end; its dtype and shape are right for as many bytes."""
    name.encode()  # half a character is no text, and could not be told to anybody
    if not isinstance(entry, dict) or not entry.keys() >= FIELDS:
        raise ValueError(f"tensor {name!r} has no dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"tensor {name!r}: dtype {dtype!r} is unknown")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"tensor {name!r}: shape {shape!r} or data_offsets {offsets!r} are not sizes")
    num_bytes = DTYPES[dtype].itemsize
    for size in shape:
        num_bytes *= size
        if num_bytes >= MAX_NUMBER:
            raise ValueError(f"tensor {name!r}: shape {shape!r} is too large")
    if offsets[1] - offsets[0] != num_bytes:
        raise ValueError(f"tensor {name!r}: {shape!r} of {dtype} are {num_bytes} bytes, not {offsets!r}")
    return offsets[0], offsets[1]


def _are_sizes(values: object) -> bool:
    # Not isinstance: true and false are no sizes.
    return isinstance(values, list) and all(
        type(value) is int and 0 <= value < MAX_NUMBER for value in values
    )


def _check_cover(spans: Mapping[str, tuple[int, int]], num_bytes: int) -> None:
    end = 0
    for name, span in sorted(spans.items(), key=lambda item: item[1]):
        if span[0] != end:
            raise ValueError(f"tensor {name!r} begins at {span[0]}, the one before it ends at {end}")
        end = span[1]
    if end != num_bytes:
        raise ValueError(f"its tensors end at {end} of {num_bytes} bytes")
