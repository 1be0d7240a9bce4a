import torch
from torch import Tensor

from kernels.lora.side import Affine, LowRank, Replacement, SlotSide


def tensors_of(side: SlotSide) -> list[Tensor]:
    changes = (*side.affines, side.embedding, side.head)
    return [tensor for change in changes if change for tensor in change.tensors() if tensor is not None]


def test_every_tensor_of_a_side_is_moved_and_nothing_is_added():
    side = SlotSide(
        (None, Affine(torch.ones(3)), Affine(torch.ones(3), torch.zeros(3))),
        LowRank(torch.ones(5, 2), torch.ones(2, 3), Affine(shift=torch.ones(3))),
        Replacement(torch.ones(5, 3), torch.ones(5)),
    )
    moved = side.moved(lambda tensor: tensor.to("meta"))
    assert len(tensors_of(moved)) == len(tensors_of(side)) == 8
    assert all(tensor.device.type == "meta" for tensor in tensors_of(moved))
    assert moved.num_bytes == side.num_bytes
    assert moved.affines[0] is None
    bare = SlotSide((None,)).moved(lambda tensor: tensor.to("meta"))
    assert (bare.embedding, bare.head, bare.changes_ends) == (None, None, False)


def test_a_side_changes_ends_when_it_has_an_embedding_or_a_head():
    weight = Replacement(torch.ones(5, 3))
    assert SlotSide((), embedding=weight).changes_ends
    assert SlotSide((), head=weight).changes_ends
    assert not SlotSide((Affine(torch.ones(3)),)).changes_ends
