"""Weight file changes: the bytes of a safetensors file, its header above all."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.tensor_changes import WEIGHTS


def _cut(directory: Path, rng: Random) -> str:
    content = (directory / WEIGHTS).read_bytes()
    end = rng.choice((0, 1, 7, 8, 9, 100, len(content) // 2, len(content) - 1))
    (directory / WEIGHTS).write_bytes(content[:end])
    return str(end)


def _lengthened(directory: Path, rng: Random) -> str:
    with (directory / WEIGHTS).open("ab") as file:
        return str(file.write(rng.randbytes(rng.choice((1, 4, 100)))))


def _header_length(directory: Path, rng: Random) -> str:
    content = bytearray((directory / WEIGHTS).read_bytes())
    length = rng.choice((0, 1, 2, len(content), 100 << 20, 2**31, 2**63 - 1, 2**63, 2**64 - 1))
    content[:8] = struct.pack("<Q", length)
    (directory / WEIGHTS).write_bytes(content)
    return str(length)


def _header_entry(directory: Path, rng: Random) -> str:
    header, data = _header(directory)
    name = rng.choice([name for name in header if name != "__metadata__"])
    entry = header[name]
    begin, end = entry["data_offsets"]
    change: dict[str, Any] = rng.choice(
        (
            {"data_offsets": [begin, end + 4]},
            {"data_offsets": [begin + 4, end + 4]},
            {"data_offsets": [0, end - begin]},
            {"data_offsets": [end, begin]},
            {"data_offsets": [-4, end]},
            {"data_offsets": [2**63, 2**64]},
            {"data_offsets": [begin]},
            {"data_offsets": [0.5, 1.5]},
            {"data_offsets": "x"},
            {"data_offsets": [True, end]},
            {"shape": [2**40, 2**40]},
            {"shape": [-1, -4]},
            {"shape": []},
            {"shape": ["4", 4]},
            {"shape": [2**64]},
            {"shape": [0, 10**30]},
            {"dtype": "F8_E4M3"},
            {"dtype": "X"},
            {"dtype": None},
            {"dtype": "F64"},
            {"dtype": "f32"},
            {"dtype": "I32"},
            {"extra": 1},
        )
    )
    header[name] = entry | change
    _write_weights(directory, json.dumps(header).encode(), data)
    return str(change)


def _header_text(directory: Path, rng: Random) -> str:
    header, data = _header(directory)
    text = json.dumps(header)
    first = next(name for name in header if name != "__metadata__")
    twice = "{" + f"{json.dumps(first)}: {json.dumps(header[first])}, " + text[1:]
    name, texts = json.dumps(first), ("\\ud800", "\\u0000", "x" * 100_000)
    broken = rng.choice(
        (
            twice,
            text[:-1],
            "[]",
            "{}",
            "null",
            "[" * 90_000,
            text + " " * 9,
            "\ufeff" + text,
            text + "\0",
            json.dumps(header | {"__metadata__": {"format": 1}}),
            json.dumps(header | {"__metadata__": []}),
            json.dumps(header | {"__metadata__": {"format": "x" * 100_000}}),
            json.dumps(header | {"x": 1}),
            *(text.replace(name, f'"{strange}"', 1) for strange in texts),
        )
    )
    _write_weights(directory, broken.encode(), data)
    return repr(broken[:40])


def _noise(directory: Path, rng: Random) -> str:
    content = bytearray((directory / WEIGHTS).read_bytes())
    count = rng.choice((1, 5, 50))
    for _ in range(count):
        content[rng.randrange(min(len(content), 4000))] = rng.randrange(256)
    (directory / WEIGHTS).write_bytes(content)
    return f"of {count} bytes"


OF_WEIGHT_FILE: tuple[Callable[[Path, Random], str], ...] = (
    _cut, _lengthened, _header_length, _header_entry, _header_text, _noise,
)  # fmt: skip


def _header(directory: Path) -> tuple[dict[str, Any], bytes]:
    content = (directory / WEIGHTS).read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def _write_weights(directory: Path, header: bytes, data: bytes) -> None:
    (directory / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header + data)
