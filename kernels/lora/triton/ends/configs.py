"""Block sizes of the ends' kernels, from a committed table of their own.

Read as the projections' are (`triton.configs`): for a backend, in order, the first row whose bounds hold,
and a row without bounds for every kernel and tile height. `make gpu` checks these kernels and tunes none.
"""

from dataclasses import dataclass
from pathlib import Path

from kernels.lora.triton.configs import Backend, Bounds, ExpandConfig, ShrinkConfig, first_fitting, read_rows

TABLE_FILE = Path(__file__).with_name("table.json")


@dataclass(frozen=True, slots=True)
class HeadExpandConfig:
    """How the head's `expand` is launched."""

    block_n: int  # columns of the vocabulary at a time
    block_r: int  # rank rows at a time
    programs: int  # at most, that share a tile's columns
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True)
class ProductConfig:
    """How `product` is launched."""

    block_n: int  # columns of the vocabulary at a time
    block_k: int  # inputs at a time
    programs: int  # at most, that share a tile's columns
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True)
class EndBlocks:
    """All rows, in the order they are tried."""

    lookup_rows: tuple[tuple[Bounds, ExpandConfig], ...]
    shrink_rows: tuple[tuple[Bounds, ShrinkConfig], ...]
    expand_rows: tuple[tuple[Bounds, HeadExpandConfig], ...]
    product_rows: tuple[tuple[Bounds, ProductConfig], ...]

    def lookup(self, tile_height: int, rank: int) -> ExpandConfig:
        """Block sizes of a lookup of adapters up to `rank`."""
        return first_fitting(self.lookup_rows, tile_height, rank=rank)

    def shrink(self, tile_height: int, columns: int) -> ShrinkConfig:
        """Block sizes of a shrink of adapters up to `columns` = rank bound."""
        return first_fitting(self.shrink_rows, tile_height, columns=columns)

    def expand(self, tile_height: int, tiles: int, rank: int) -> HeadExpandConfig:
        """Block sizes of an expand of adapters up to `rank`."""
        return first_fitting(self.expand_rows, tile_height, tiles=tiles, rank=rank)

    def product(self, tile_height: int, tiles: int) -> ProductConfig:
        """Block sizes of a product with heads of their own."""
        return first_fitting(self.product_rows, tile_height, tiles=tiles)


def load_end_blocks(file: Path = TABLE_FILE, *, backend: Backend | None = None) -> EndBlocks:
    """Read and check the committed table, as `backend` launches it; None: the present one."""
    return EndBlocks(
        read_rows(file, "lookup", ExpandConfig, backend),
        read_rows(file, "shrink", ShrinkConfig, backend),
        read_rows(file, "expand", HeadExpandConfig, backend),
        read_rows(file, "product", ProductConfig, backend),
    )
