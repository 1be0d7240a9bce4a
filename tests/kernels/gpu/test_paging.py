import torch

from kernels.cpu.paging import PagedChunk
from kernels.gpu.paging import chunk_table


def test_a_table_says_where_chunks_begin_what_they_see_and_which_blocks_are_theirs():
    table = chunk_table([PagedChunk(4, 1, (7, 2, 9)), PagedChunk(0, 3, (5,))], block_size=4)
    assert table.starts.tolist() == [0, 1, 4]
    assert table.contexts.tolist() == [5, 3]
    assert table.ends.tolist() == [0, 5, 8]
    # Blocks past a sequence's end are its own last one: never another's.
    assert table.blocks.tolist() == [[7, 2], [5, 5]]
    assert (table.max_length, table.max_context) == (3, 5)
    assert {tensor.dtype for tensor in table.tensors()} == {torch.int32}


def test_a_captured_table_has_room_for_the_longest_sequence():
    table = chunk_table([PagedChunk(4, 1, (7, 2))], block_size=4, room=17)
    assert table.blocks.shape == (1, 5)
    assert table.max_context == 17
