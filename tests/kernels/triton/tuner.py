"""Finds block sizes for the committed table, by trying them on the machine it runs on.

Knows candidates and what a row of the table is for; how a launch is timed is handed in. Every row has
an equal share of the time; what is not tried stays, so the result is always a whole table.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import product

from kernels.lora.triton.configs import BlockTable, Bounds, ExpandConfig, ShrinkConfig
from tests.kernels.triton.cases import Case

MANY_TILES = 192  # for a row without a bound
Config = ShrinkConfig | ExpandConfig
Measure = Callable[["Sample", BlockTable], float]  # seconds of one launch; inf: it does not fit


@dataclass(frozen=True, slots=True)
class Sample:
    """A shape that stands for a row of the table."""

    kernel: str  # "shrink" or "expand"
    in_features: int
    widths: tuple[int, ...]
    rank: int
    num_tokens: int
    num_adapters: int

    def case(self, dtype: object, device: str) -> Case:
        """As a batch: tokens in runs of one adapter."""
        each = -(-self.num_tokens // self.num_adapters)
        slots = tuple(token // each for token in range(self.num_tokens))
        ranks = ((self.rank,) * len(self.widths),) * self.num_adapters
        return Case(self.in_features, self.widths, ranks, slots, dtype, device)  # type: ignore[arg-type]


def sample_of(kernel: str, bounds: Bounds) -> Sample:
    """The middle of what the row is for."""
    tiles = bounds.max_tiles * 3 // 4 if bounds.max_tiles else MANY_TILES
    adapters = 4 if bounds.tile_height > 16 else tiles
    tokens = tiles * bounds.tile_height if bounds.tile_height > 16 else tiles
    if kernel == "expand":
        return Sample(kernel, 4096, (4096, 1024, 1024), bounds.max_rank or 128, tokens, adapters)
    slices = min(3, (bounds.max_columns or 192) // 16)
    rank = (bounds.max_columns or 192) // slices
    inputs = bounds.max_in_features or 4096
    return Sample(kernel, inputs, (inputs,) * slices, rank, tokens, adapters)


def shrink_candidates(bounds: Bounds) -> Iterator[ShrinkConfig]:
    """Block sizes worth trying for a row."""
    columns = min(bounds.max_columns or 64, 64)
    splits = (2, 4, 8, 16) if bounds.tile_height == 16 else (1, 2, 4)
    # Few, because each is compiled: about a second.
    for split_k, block_k in product(splits, (64, 128, 256)):
        yield ShrinkConfig(max(16, columns), block_k, split_k, num_warps=4, num_stages=3)


def expand_candidates(bounds: Bounds) -> Iterator[ExpandConfig]:
    """Block sizes worth trying for a row."""
    rows = (min(bounds.max_rank, 64),) if bounds.max_rank else (32, 64)
    for block_n, block_r, warps, stages in product((64, 128, 256), rows, (4, 8), (2,)):
        yield ExpandConfig(block_n, block_r, warps, stages)


def tune(
    table: BlockTable, measure: Measure, clock: Callable[[], float], deadline: float
) -> tuple[BlockTable, list[dict[str, object]]]:
    """The table with the fastest block sizes found until `deadline`, and what was tried."""
    tried: list[dict[str, object]] = []
    rows_left = len(table.shrink_rows) + len(table.expand_rows)

    def best(kernel: str, bounds: Bounds, now: Config, candidates: Iterator[Config]) -> Config:
        nonlocal rows_left
        sample, times = sample_of(kernel, bounds), dict[Config, float]()
        share_ends = clock() + (deadline - clock()) / rows_left
        rows_left -= 1
        for config in (now, *candidates):
            if clock() >= share_ends:
                break
            times[config] = measure(sample, _only(table, bounds, config))
        if not times:
            return now
        winner = min(times, key=times.__getitem__)
        # A tie goes to what is committed: noise must not rewrite the table.
        if times[winner] > 0.97 * times[now]:
            winner = now
        tried.append(
            {
                "kernel": kernel,
                "for": asdict(bounds),
                "num_tried": len(times),
                "seconds": times[winner],
                "committed_seconds": times[now],
            }
        )
        return winner

    shrinks = tuple((b, best("shrink", b, c, shrink_candidates(b))) for b, c in table.shrink_rows)
    expands = tuple((b, best("expand", b, c, expand_candidates(b))) for b, c in table.expand_rows)
    return BlockTable(shrinks, expands), tried  # type: ignore[arg-type]


def to_json(table: BlockTable) -> str:
    """As `kernels/lora/triton/table.json` is written."""

    def rows(pairs: tuple[tuple[Bounds, Config], ...]) -> list[dict[str, object]]:
        return [
            {
                "for": {name: value for name, value in asdict(bounds).items() if value is not None},
                "blocks": asdict(config),
            }
            for bounds, config in pairs
        ]

    parts = {"shrink": rows(table.shrink_rows), "expand": rows(table.expand_rows)}
    listed = (
        f'  "{name}": [\n' + ",\n".join("    " + json.dumps(row) for row in part) + "\n  ]"
        for name, part in parts.items()
    )
    return "{\n" + ",\n".join(listed) + "\n}\n"


def _only(table: BlockTable, bounds: Bounds, config: Config) -> BlockTable:
    """A table that gives `config` to every shape of the row's tile height."""
    everything = Bounds(bounds.tile_height)
    if isinstance(config, ShrinkConfig):
        return BlockTable(((everything, config),), table.expand_rows)
    return BlockTable(table.shrink_rows, ((everything, config),))
