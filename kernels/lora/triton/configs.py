"""Block sizes of both kernels, from a committed table.

A table and no autotuning: a launch in a captured graph may not try things out, and a compilation
in the middle of serving stalls every stream. Rows are read in order; the first whose bounds hold
is taken, and the last row of a kernel and tile height has no bounds, so that every shape that can
be reached has one. A table is loaded for a backend: what the proof compiles is what is launched there.
`make gpu` writes a table tuned on its machine.
"""

import json
from dataclasses import dataclass, replace
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


Config = TypeVar("Config", ShrinkConfig, ExpandConfig)


@dataclass(frozen=True, slots=True)
class BlockTable:
    """All rows, in the order they are tried."""

    shrink_rows: tuple[tuple[Bounds, ShrinkConfig], ...]
    expand_rows: tuple[tuple[Bounds, ExpandConfig], ...]

    def shrink(self, tile_height: int, tiles: int, columns: int, in_features: int) -> ShrinkConfig:
        """Block sizes of a shrink of `columns` = rank bound times slices."""
        return _first(self.shrink_rows, tile_height, tiles=tiles, columns=columns, in_features=in_features)

    def expand(self, tile_height: int, tiles: int, rank: int) -> ExpandConfig:
        """Block sizes of an expand of adapters up to `rank`."""
        return _first(self.expand_rows, tile_height, tiles=tiles, rank=rank)


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
    rows, most = json.loads(file.read_text()), MAX_STAGES[backend or present_backend()]
    shrinks = ((Bounds(**row["for"]), ShrinkConfig(**row["blocks"])) for row in rows["shrink"])
    expands = ((Bounds(**row["for"]), ExpandConfig(**row["blocks"])) for row in rows["expand"])
    table = BlockTable(
        tuple((bounds, replace(c, num_stages=min(c.num_stages, most))) for bounds, c in shrinks),
        tuple((bounds, replace(c, num_stages=min(c.num_stages, most))) for bounds, c in expands),
    )
    for name, bounds in (
        ("shrink", [bounds for bounds, _ in table.shrink_rows]),
        ("expand", [bounds for bounds, _ in table.expand_rows]),
    ):
        for height in TILE_HEIGHTS:
            if Bounds(height) not in bounds:
                raise LaunchRefused(f"{name}.tile_height", height, f"has no row without bounds in {file}")
    return table


def _first(rows: tuple[tuple[Bounds, Config], ...], tile_height: int, **values: int) -> Config:
    for bounds, config in rows:
        if bounds.hold(tile_height, **values):
            return config
    raise LaunchRefused("tile_height", tile_height, f"is none of {TILE_HEIGHTS}")
