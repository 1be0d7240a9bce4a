"""What is said at start: where the memory goes, how many adapters fit, and which settings pull apart."""

from collections.abc import Iterator
from dataclasses import dataclass

import structlog

from data_plane.config import SUPPORTED_RANKS, EngineConfig
from data_plane.engine.runtime import Runtime

_log = structlog.get_logger("data_plane.engine")
ROWS_PER_PAGE = 8


@dataclass(frozen=True, slots=True)
class Fit:
    """How many adapters of one rank, on every module, have room at the same time."""

    rank: int
    slots: int
    cpu_cache: int


def fits(config: EngineConfig, *, num_pages: int, page_bytes: int) -> tuple[Fit, ...]:
    """Room by rank, from one page's worth up to the largest rank served."""
    ranks = [rank for rank in sorted(SUPPORTED_RANKS) if ROWS_PER_PAGE <= rank < config.max_lora_rank]
    return tuple(
        Fit(
            rank,
            slots=min(config.max_loras, num_pages // -(-rank // ROWS_PER_PAGE)),
            # True ranks in host memory: a page there is as long as its rows.
            cpu_cache=min(config.cpu_loras, config.cpu_cache_bytes * ROWS_PER_PAGE // (rank * page_bytes)),
        )
        for rank in (*ranks, config.max_lora_rank)
    )


def settings_warnings(config: EngineConfig) -> Iterator[tuple[str, str]]:
    """Fields and rules of settings that work, but not well together."""
    if not config.enable_lora:
        return
    if 2 * config.max_loras > config.max_num_seqs:
        yield (
            "max_loras",
            f"{config.max_loras} is above half of max_num_seqs ({config.max_num_seqs}): "
            "steps can seldom use that many adapters",
        )
    if config.cpu_loras < 2 * config.max_loras:
        yield (
            "max_cpu_loras",
            f"{config.cpu_loras} is below twice max_loras ({config.max_loras}): adapters that take turns "
            "in the slots are read from disk or source again and again",
        )


def log_start(config: EngineConfig, runtime: Runtime) -> None:
    """One summary, and one warning for each pair of settings that pull apart."""
    room = ""
    if config.enable_lora:
        pool = runtime.rank_pool
        room = ", ".join(
            f"rank {fit.rank}: {fit.slots} in slots, {fit.cpu_cache} in the CPU cache"
            for fit in fits(config, num_pages=pool.num_pages, page_bytes=pool.page_bytes)
        )
    _log.info(
        "memory",
        weights=_readable(runtime.bytes.weights),
        rank_pool=_readable(runtime.bytes.rank_pool),
        kv_cache=f"{_readable(runtime.bytes.kv_cache)} ({runtime.num_blocks} blocks)",
        cpu_cache=f"at most {_readable(config.cpu_cache_bytes)}",
        disk_cache=f"at most {_readable(config.disk_cache_bytes)}",
        adapters_fit=room or "none: enable_lora is false",
    )
    for field, rule in settings_warnings(config):
        _log.warning("setting", field=field, rule=rule)


def _readable(num_bytes: int) -> str:
    size, units = float(num_bytes), ["B", "KiB", "MiB", "GiB"]
    while size >= 1024 and len(units) > 1:
        size /= 1024
        units.pop(0)
    return f"{size:.4g} {units[0]}"
