from itertools import product

import pytest
import torch

from kernels.lora.segments import build_segments
from kernels.lora.triton.errors import LaunchRefused
from kernels.lora.triton.tiles import LaunchShape, TileBuffers, cut, lay_out, tile_height
from tests.kernels.triton.cases import mixed_slots


@pytest.mark.parametrize(("num_tokens", "height"), [*product([1, 7, 64, 300], [16, 64])])
def test_tiles_cover_every_token_of_an_adapter_once(num_tokens: int, height: int):
    slots = mixed_slots(num_tokens, 6)
    segments = build_segments(slots)
    covered = {}
    for slot, start, length in cut(segments, height):
        assert length <= height
        covered.update(dict.fromkeys(segments.order[start : start + length].tolist(), slot))
    assert covered == {token: slot for token, slot in enumerate(slots) if slot is not None}


@pytest.mark.parametrize("num_slots", [1, 5, 40, 300])
def test_a_captured_shape_has_room_for_every_mix_of_its_batch_and_so_have_the_buffers(num_slots: int):
    for num_tokens in (1, 2, 15, 16, 17, 64, 130):
        shape = LaunchShape.for_capture(num_tokens, num_slots, rank=16)
        buffers = TileBuffers(num_tokens, num_slots, torch.device("cpu"))
        for adapters in range(1, num_slots + 1):
            buffers.write(build_segments([token % adapters for token in range(num_tokens)]), shape)


def test_what_a_step_writes_is_at_the_addresses_of_the_step_before():
    buffers, shape = TileBuffers(8, 4, torch.device("cpu")), LaunchShape(16, 4, 16)
    first = buffers.write(build_segments([3, None, 1, 3]), shape)
    assert (first.num_tiles.item(), first.tiles[:2, :3].tolist()) == (2, [[1, 0, 1], [3, 1, 2]])
    assert first.order[:3].tolist() == [2, 0, 3]
    second = buffers.write(build_segments([None, 2]), shape)
    assert second.tiles.data_ptr() == first.tiles.data_ptr()
    assert second.order.data_ptr() == first.order.data_ptr()
    assert (first.num_tiles.item(), first.order[0].item()) == (1, 1)


def test_more_than_the_launch_has_room_for_is_refused():
    buffers = TileBuffers(4, 4, torch.device("cpu"))
    with pytest.raises(LaunchRefused, match="tiles: 2"):
        buffers.write(build_segments([0, 1]), LaunchShape(16, 1, 16))
    with pytest.raises(LaunchRefused, match="tokens: 5"):
        buffers.write(build_segments([0] * 5), LaunchShape(16, 4, 16))


def test_tiles_laid_out_on_the_host_are_what_the_buffers_write():
    segments, shape = build_segments([3, None, 1, 3]), LaunchShape(16, 4, 16)
    buffers = TileBuffers(4, 4, torch.device("cpu")).write(segments, shape)
    laid = lay_out(segments, shape, max_tokens=4)
    assert (laid.order.shape, laid.tiles.shape, laid.shape) == ((4,), (4, 4), shape)
    assert laid.order[:3].tolist() == buffers.order[:3].tolist()
    assert laid.tiles[:2].tolist() == buffers.tiles[:2].tolist()
    assert laid.num_tiles.tolist() == [2]
    with pytest.raises(LaunchRefused, match="tiles: 2"):
        lay_out(segments, LaunchShape(16, 1, 16))
    with pytest.raises(LaunchRefused, match="tokens: 3"):
        lay_out(segments, shape, max_tokens=2)


def test_tall_tiles_are_for_many_tokens_of_one_adapter():
    assert tile_height(build_segments([0] * 256)) == 64
    assert tile_height(build_segments(list(range(64)))) == 16
    assert tile_height(build_segments([None] * 8)) == 16
