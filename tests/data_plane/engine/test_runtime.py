from pathlib import Path

import pytest
import torch

from data_plane.engine.runtime import build_runtime
from data_plane.errors import InvalidRequest, ModelRefused
from tests.data_plane.batch_driver import Sequence, step
from tests.data_plane.world import World, tiny_config


def test_the_pool_has_pages_for_every_slot_and_one_staged_adapter(world: World):
    assert world.runtime.rank_pool.num_pages == (3 + 1) * 2
    assert (
        world.runtime.bytes.rank_pool
        == world.runtime.rank_pool.num_pages * world.runtime.rank_pool.page_bytes
    )


def test_a_bounded_pool_holds_more_small_adapters_than_slots_of_the_largest_rank(world: World):
    page_bytes = world.runtime.rank_pool.page_bytes
    config = tiny_config(
        world.base, world.root, max_loras=16, max_lora_rank=64, rank_pool_bytes=16 * page_bytes + 1
    )
    pool = build_runtime(config).rank_pool
    # 16 pages: 16 adapters of rank 8, where slots of rank 64 would be two.
    assert (pool.num_pages, len(pool.slots.rows)) == (16, 16)


def test_a_pool_without_room_to_stage_a_reload_is_refused_with_the_least_bytes(world: World):
    page_bytes = world.runtime.rank_pool.page_bytes
    with pytest.raises(InvalidRequest, match=rf"rank_pool_bytes: .* must be at least {4 * page_bytes}"):
        build_runtime(tiny_config(world.base, world.root, rank_pool_bytes=4 * page_bytes - 1))


def test_the_kv_cache_fills_its_bytes(world: World):
    block_bytes = 2 * 2 * 2 * 16 * 4 * 4  # layers, K and V, heads, head size, tokens, bytes
    assert world.runtime.num_blocks == (1 << 20) // block_bytes
    assert world.runtime.bytes.kv_cache == world.runtime.num_blocks * block_bytes


def test_blocks_are_as_long_as_asked_for_and_else_as_the_platform_chooses(world: World):
    assert world.runtime.block_size == 4
    assert build_runtime(tiny_config(world.base, world.root, block_size=0)).block_size == 16


def test_max_model_len_is_the_smaller_of_settings_and_model(world: World):
    assert world.runtime.max_model_len == 512
    assert build_runtime(tiny_config(world.base, world.root, max_model_len=100)).max_model_len == 100


def test_half_precision_computes_the_same_tokens_as_it_would_alone(world: World):
    runtime = build_runtime(tiny_config(world.base, world.root, dtype="bfloat16"))
    sequences = [Sequence(i, [5 + i, 9, 11], None, (2 * i, 2 * i + 1)) for i in range(3)]
    for _ in range(4):
        step(runtime, sequences)
    alone = Sequence(1, [6, 9, 11], None, (20, 21))
    for _ in range(4):
        step(runtime, [alone])
    assert alone.output == sequences[1].output


def test_without_lora_there_is_no_pool(world: World):
    runtime = build_runtime(tiny_config(world.base, world.root, enable_lora=False))
    assert runtime.bytes.rank_pool == 0
    step(runtime, [Sequence(0, [1, 2, 3], None, (0, 1))])


def test_a_cache_too_small_for_one_block_is_refused(world: World):
    with pytest.raises(
        InvalidRequest, match=r"kv_cache_bytes: 100 must be at least one block \(2048 bytes\)"
    ):
        build_runtime(tiny_config(world.base, world.root, kv_cache_bytes=100))


def test_a_directory_that_is_no_model_is_refused(tmp_path: Path):
    with pytest.raises(ModelRefused, match=r"has no config\.json"):
        build_runtime(tiny_config(tmp_path, tmp_path))


def test_adapter_weights_may_have_another_dtype_than_the_base(world: World):
    runtime = build_runtime(tiny_config(world.base, world.root, lora_dtype="bfloat16"))
    assert runtime.rank_pool.modules[0].a.dtype == torch.bfloat16
    assert runtime.bytes.rank_pool * 2 == world.runtime.bytes.rank_pool
