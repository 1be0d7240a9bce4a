"""The header of a safetensors file, checked against the file's size; no tensor is read.

Format: 8 bytes little-endian length n · n bytes of JSON `{name: {dtype, shape, data_offsets}}` ·
tensor data without gaps (https://huggingface.co/docs/safetensors). Checking it at registration
refuses truncated files and garbage before any worker sees them.
"""

import json
from collections.abc import Iterator
from math import prod
from typing import BinaryIO

from control_plane.errors import Refused

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 16 << 20  # about 100,000 tensors; the largest adapters have some thousands
DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


def check_header(where: str, file: BinaryIO, file_bytes: int) -> None:
    """Read the header from the file's start; raise Refused unless it describes exactly this file."""
    length = int.from_bytes(file.read(LENGTH_BYTES), "little")
    if file_bytes < LENGTH_BYTES or length > file_bytes - LENGTH_BYTES:
        raise Refused(
            f"{where} is truncated or no safetensors file: its header says {length} bytes, "
            f"the file has {file_bytes}"
        )
    if length > MAX_HEADER_BYTES:
        raise Refused(f"{where}: a header of {length} bytes is over the limit of {MAX_HEADER_BYTES}")
    data_bytes = file_bytes - LENGTH_BYTES - length
    expected = 0
    for begin, end, name in sorted(_spans(where, file.read(length))):
        if begin != expected:
            raise Refused(f"{where}: tensor {name!r} starts at byte {begin}, expected {expected}")
        expected = end
    if expected != data_bytes:
        raise Refused(
            f"{where} is truncated or damaged: {data_bytes} bytes of tensors, header says {expected}"
        )


def _spans(where: str, header: bytes) -> Iterator[tuple[int, int, str]]:
    """Yield begin, end and name of every tensor."""
    try:
        tensors = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise Refused(f"{where} is no safetensors file: its header is no JSON") from error
    if not isinstance(tensors, dict):
        raise Refused(f"{where} is no safetensors file: its header is no JSON object")
    tensors.pop("__metadata__", None)
    if not tensors:
        raise Refused(f"{where} holds no tensor")
    for name, tensor in tensors.items():
        yield _span(f"{where}: tensor {name!r}", tensor, name)


def _span(where: str, tensor: object, name: str) -> tuple[int, int, str]:
    match tensor:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
            if dtype not in DTYPE_BYTES:
                raise Refused(f"{where} has the dtype {dtype}, served are {', '.join(DTYPE_BYTES)}")
            if not all(type(size) is int and size >= 0 for size in shape):
                raise Refused(f"{where} has the shape {shape}")
            needed = prod(shape) * DTYPE_BYTES[dtype]
            if not 0 <= begin <= end or end - begin != needed:
                raise Refused(
                    f"{where} of {dtype} {shape} needs {needed} bytes, its offsets are [{begin}, {end}]"
                )
            return begin, end, name
    raise Refused(f"{where} lacks dtype, shape or data_offsets")
