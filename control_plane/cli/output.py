"""Tables for people, JSON for programs."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence

import typer
from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.table import Table

# Piped, a table is for grep and awk: as wide as it needs to be.
PIPED_COLUMNS = 1000
console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPED_COLUMNS)
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
DIGEST_CHARACTERS = len("sha256:") + 12


def print_json(message: Message, *, indent: int | None = 2) -> None:
    """A message as JSON, absent fields included, names as in the .proto."""
    text = MessageToJson(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True, indent=indent
    )
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def print_object(content: Mapping[str, object]) -> None:
    """What no message says, as JSON."""
    sys.stdout.write(json.dumps(content, indent=2) + "\n")
    sys.stdout.flush()


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table; columns that are numbers are right-aligned."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        numeric = name in {"revision", "rank", "bytes", "running", "waiting", "leases", "elapsed"}
        # Wrapped ids cannot be copied: let the terminal scroll instead.
        table.add_column(name, no_wrap=True, justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    console.print(table, soft_wrap=True)


def print_line(cells: Iterable[object], widths: Iterable[int]) -> None:
    """A row of a table that has no end: cells as wide as told, at once and in a pipe too."""
    padded = (str(cell).ljust(width) for cell, width in zip(cells, widths, strict=True))
    sys.stdout.write("  ".join(padded).rstrip() + "\n")
    sys.stdout.flush()


def note(line: str) -> None:
    """A remark for people, on standard error."""
    typer.echo(typer.style(line, dim=True), err=True)


def short_digest(digest: str) -> str:
    """Enough of a digest to tell revisions apart."""
    return digest[:DIGEST_CHARACTERS]


def size(num_bytes: int) -> str:
    """Bytes for people: 3.5 MiB."""
    value = float(num_bytes)
    for unit in _UNITS[:-1]:
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} {_UNITS[-1]}"


def moment(time: Timestamp) -> str:
    """A time on the server's clock, for people: 2026-11-22 00:24:12Z."""
    return f"{time.ToDatetime():%Y-%m-%d %H:%M:%S}Z"


def enum_label(name: str, prefix: str) -> str:
    """REVISION_STATE_READY → ready."""
    return name.removeprefix(prefix).lower().replace("_", "-")
