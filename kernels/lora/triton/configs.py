"""Block sizes of both kernels, from a committed table.

A table and no autotuning: a launch in a captured graph may not try things out, and a compilation
in the middle of serving stalls every stream. Rows are read in order; the first whose bounds hold
is taken, and the last row of a kernel and tile height has no bounds, so that every shape that can
be reached has one. A table is loaded for a backend: what the proof compiles is what is launched there.
`make gpu` writes a table tuned on its machine.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import torch

from kernels.lora.triton.errors import LaunchRefused

TABLE_FILE = Path(__file__).with_name("table.json")
TILE_HEIGHTS = (16, 64)  # decode; prefill and many tokens of one adapter
MIN_RANK, MAX_RANK = 16, 512
Backend = Literal["cuda", "hip"]
# AMD's 64 KiB of shared memory hold two stages of every row.
MAX_STAGES: dict[Backend, int] = {"cuda": 8, "hip": 2}


@dataclass(frozen=True, slots=True)
class ShrinkConfig:
    """How `shrink` is launched."""

    block_n: int  # columns: rank rows times slices
    block_k: int  # inputs at a time
    split_k: int  # programs that share a tile's inputs
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True)
class ExpandConfig:
    """How `expand` is launched."""

    block_n: int  # output columns
    block_r: int  # rank rows at a time
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a row of the table is for; None: any."""

    tile_height: int
    max_tiles: int | None = None
    max_columns: int | None = None  # shrink: rank rows times slices
    max_in_features: int | None = None  # shrink
    max_rank: int | None = None  # expand

    def hold(self, tile_height: int, **values: int) -> bool:
        """Whether every value is within its bound."""
        return tile_height == self.tile_height and all(
            (bound := getattr(self, f"max_{name}")) is None or value <= bound
            for name, value in values.items()
        )


Config = TypeVar("Config")


@dataclass(frozen=True, slots=True)
class BlockTable:
    """All rows, in the order they are tried."""

    shrink_rows: tuple[tuple[Bounds, ShrinkConfig], ...]
    expand_rows: tuple[tuple[Bounds, ExpandConfig], ...]

    def shrink(self, tile_height: int, tiles: int, columns: int, in_features: int) -> ShrinkConfig:
        """Block sizes of a shrink of `columns` = rank bound times slices."""
        return first_fitting(
            self.shrink_rows, tile_height, tiles=tiles, columns=columns, in_features=in_features
        )

    def expand(self, tile_height: int, tiles: int, rank: int) -> ExpandConfig:
        """Block sizes of an expand of adapters up to `rank`."""
        return first_fitting(self.expand_rows, tile_height, tiles=tiles, rank=rank)


def rank_bound(rank: int) -> int:
    """The power of two that launches for adapters up to `rank` are compiled for."""
    if not 0 < rank <= MAX_RANK:
        raise LaunchRefused("rank", rank, f"is not within 1 to {MAX_RANK}")
    return max(MIN_RANK, 1 << (rank - 1).bit_length())


def present_backend() -> Backend:
    """What this build of torch launches on."""
    return "cuda" if torch.version.hip is None else "hip"


def load_table(file: Path = TABLE_FILE, *, backend: Backend | None = None) -> BlockTable:
    """Read and check the committed table, as `backend` launches it; None: the present one."""
    return BlockTable(
        read_rows(file, "shrink", ShrinkConfig, backend), read_rows(file, "expand", ExpandConfig, backend)
    )


def read_rows(
    file: Path, kernel: str, make: Callable[..., Config], backend: Backend | None
) -> tuple[tuple[Bounds, Config], ...]:
    """A kernel's rows, as `backend` launches them; refuse rows among which a shape may find none."""
    most = MAX_STAGES[backend or present_backend()]
    rows = [(Bounds(**row["for"]), row["blocks"]) for row in json.loads(file.read_text())[kernel]]
    for height in TILE_HEIGHTS:
        if Bounds(height) not in [bounds for bounds, _ in rows]:
            raise LaunchRefused(f"{kernel}.tile_height", height, f"has no row without bounds in {file}")
    return tuple(
        (bounds, make(**blocks | {"num_stages": min(blocks["num_stages"], most)})) for bounds, blocks in rows
    )


def first_fitting(rows: Sequence[tuple[Bounds, Config]], tile_height: int, **values: int) -> Config:
    """The config of the first row whose bounds hold."""
    for bounds, config in rows:
        if bounds.hold(tile_height, **values):
            return config
    raise LaunchRefused("tile_height", tile_height, f"is none of {TILE_HEIGHTS}")
