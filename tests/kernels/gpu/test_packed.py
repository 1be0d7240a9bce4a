import pytest
import torch

from kernels.gpu.packed import ALIGN_BYTES, PackedLayout


def test_tensors_come_out_of_one_buffer_as_they_went_in():
    tensors = [
        torch.arange(5),
        torch.arange(7, dtype=torch.int32),
        torch.zeros(0, dtype=torch.int64),
        torch.randn(2, 3),
    ]
    layout = PackedLayout.of(tensors)
    buffer = torch.empty(layout.num_bytes, dtype=torch.uint8)
    layout.fill(buffer, tensors)
    for found, tensor in zip(layout.views(buffer), tensors, strict=True):
        assert torch.equal(found, tensor)
        assert (found.data_ptr() - buffer.data_ptr()) % ALIGN_BYTES == 0


def test_a_buffer_made_for_other_shapes_is_refused():
    layout = PackedLayout.of([torch.arange(5)])
    with pytest.raises(ValueError, match=r"\(47,\) is not the 48 bytes"):
        layout.check(torch.empty(47, dtype=torch.uint8))
