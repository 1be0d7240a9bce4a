from pathlib import Path

import pytest
from structlog.testing import capture_logs

from data_plane.config import EngineConfig
from data_plane.engine.start_report import fits, log_start, settings_warnings
from tests.data_plane.world import World, tiny_config


def config_of(**options: object) -> EngineConfig:
    return EngineConfig(model=Path("base"), **options)


def test_room_is_counted_in_pages_in_the_pool_and_in_true_ranks_in_the_cache():
    config = config_of(max_loras=8, max_lora_rank=32, max_cpu_loras=100, cpu_cache_bytes=50_000)
    found = [(fit.rank, fit.slots, fit.cpu_cache) for fit in fits(config, num_pages=9, page_bytes=1000)]
    assert found == [(8, 8, 50), (16, 4, 25), (32, 2, 12)]


def test_a_rank_below_a_page_takes_a_page():
    config = config_of(max_loras=8, max_lora_rank=4, max_cpu_loras=100, cpu_cache_bytes=50_000)
    (fit,) = fits(config, num_pages=5, page_bytes=1000)
    assert (fit.rank, fit.slots, fit.cpu_cache) == (4, 5, 100)


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({"max_loras": 8, "max_cpu_loras": 16, "max_num_seqs": 16}, []),
        ({"max_loras": 9, "max_cpu_loras": 18, "max_num_seqs": 16}, ["max_loras"]),
        ({"max_loras": 8, "max_cpu_loras": 15, "max_num_seqs": 16}, ["max_cpu_loras"]),
        ({"max_loras": 9, "max_num_seqs": 16, "enable_lora": False}, []),
    ],
)
def test_settings_that_pull_apart_are_warned_of(options, fields):
    assert [field for field, _ in settings_warnings(config_of(**options))] == fields


def test_the_start_is_summed_up_in_one_line(world: World):
    with capture_logs() as logs:
        log_start(tiny_config(world.base, world.root), world.runtime)
    (memory,) = [entry for entry in logs if entry["event"] == "memory"]
    assert memory["kv_cache"] == "1 MiB (512 blocks)"
    pool = world.runtime.rank_pool
    assert memory["rank_pool"] == f"{pool.num_pages * pool.page_bytes / 1024:.4g} KiB"
    # Its weights are never fewer than the checkpoint's; packed copies of them may come on top.
    stored = (world.base / "model.safetensors").stat().st_size / 1024
    amount, unit = memory["weights"].split()
    assert unit == "KiB"
    assert 0.95 * stored < float(amount) < 2 * stored
    assert memory["adapters_fit"].startswith("rank 8: 3 in slots, ")
    assert [entry["field"] for entry in logs if entry["log_level"] == "warning"] == ["max_cpu_loras"]
