"""Memory for packed adapters comes back by itself, and what is kept for later stays inside the bound."""

import pytest
import torch

from data_plane.adapters.buffers import Buffers


def test_memory_is_used_again_once_nothing_views_it():
    buffers = Buffers(max_bytes=100)
    first = buffers.lend(40)
    address, view = first.data_ptr(), first.view(torch.float32)[2:4]
    del first
    assert (buffers.lent_bytes, buffers.spare_bytes) == (40, 0)
    assert buffers.lend(40).data_ptr() != address, "a view still reads the first"
    del view
    assert buffers.lend(40).data_ptr() == address


def test_spare_memory_leaves_rather_than_take_the_whole_past_the_bound():
    buffers = Buffers(max_bytes=100)
    del (first := [buffers.lend(40), buffers.lend(40)])[:]
    assert (first, buffers.spare_bytes) == ([], 80)
    larger = buffers.lend(50)
    assert (buffers.lent_bytes, buffers.spare_bytes) == (50, 40)
    beyond = buffers.lend(90)
    assert (buffers.lent_bytes, buffers.spare_bytes) == (140, 0)
    del larger, beyond
    assert buffers.lent_bytes == 0
    assert buffers.spare_bytes <= 100


def test_memory_that_could_not_be_had_is_not_counted():
    def fail(num_bytes: int) -> torch.Tensor:
        raise MemoryError(num_bytes)

    buffers = Buffers(100, fail)
    with pytest.raises(MemoryError):
        buffers.lend(40)
    assert buffers.lent_bytes == 0
