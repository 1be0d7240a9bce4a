import pytest
import torch

from kernels.lora.segments import build_segments


def test_tokens_are_sorted_by_slot_and_keep_their_order_within_it():
    segments = build_segments([1, 0, None, 1, 0])
    assert segments.order.tolist() == [1, 4, 0, 3]
    assert [(tile.slot, tile.start, tile.length) for tile in segments.tiles] == [(0, 0, 2), (1, 2, 2)]


def test_a_step_of_base_tokens_has_no_tiles():
    segments = build_segments([None] * 7)
    assert segments.tiles == ()
    assert segments.num_lora_tokens == 0
    assert segments.num_tokens == 7


def test_consecutive_rows_are_a_slice_and_scattered_rows_are_not():
    segments = build_segments([None, 2, 2, 5, None, 5])
    assert [tile.first_row for tile in segments.tiles] == [1, None]


@pytest.mark.parametrize("height", [1, 2, 3, 16])
def test_tiles_cover_every_token_once_and_respect_their_height(height: int):
    slots = [3, 1, None, 3, 3, 1, 3, None, 3]
    segments = build_segments(slots, max_tile_tokens=height)
    covered = [(row, tile.slot) for tile in segments.tiles for row in segments.rows(tile).tolist()]
    assert sorted(covered) == [(row, slot) for row, slot in enumerate(slots) if slot is not None]
    assert all(tile.length <= height for tile in segments.tiles)


def test_the_tiles_of_chosen_rows_name_their_places_among_them():
    segments = build_segments([None, 2, 2, 5, None, 5])
    chosen = segments.of_rows(torch.tensor([5, 0, 1, 3]))
    assert chosen.num_tokens == 4
    assert [(tile.slot, chosen.rows(tile).tolist()) for tile in chosen.tiles] == [(2, [2]), (5, [0, 3])]
    assert [tile.first_row for tile in chosen.tiles] == [2, None]


def test_moved_segments_describe_the_heads_rows_without_reading_any_back():
    segments, rows = build_segments([1, 0, None, 1]), torch.tensor([3, 1])
    on_device = segments.order.to("meta")
    moved = segments.moved(on_device, segments.of_rows(rows))
    assert moved.order is on_device
    assert (moved.tiles, moved.num_tokens) == (segments.tiles, 4)
    # On meta nothing can be read: what the head gets was described before.
    assert moved.of_rows(rows.to("meta")).tiles == segments.of_rows(rows).tiles
    assert segments.moved(on_device).of_rows(rows.to("meta")).tiles == ()
