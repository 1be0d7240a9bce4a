from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import ClassVar

import pytest
import torch

from data_plane.adapters.buffers import Buffers, new_buffer
from data_plane.adapters.pool import TorchRankPool
from kernels.lora.pool import PAGE_ROWS
from kernels.lora.side import Affine, SlotSide
from tests.data_plane.world import World, source_of
from tests.kernels.gpu.stand_ins import BufferedDevice


@pytest.fixture
def pool(world: World) -> TorchRankPool:
    return TorchRankPool(world.runtime.layout, num_slots=2, num_pages=6, dtype=torch.float32)


@pytest.mark.parametrize("pages", [(1, 2), (4, 1)])
def test_pages_hold_the_true_ranks_and_nothing_else_is_touched(
    world: World, pool: TorchRankPool, pages: tuple[int, int]
):
    packed = world.runtime.reader.read(source_of(world.adapters["patterned"]))
    for module in pool.modules:
        module.a.fill_(float("nan"))
        module.b.fill_(float("nan"))
    pool.write(pages, packed)
    rows = [page * PAGE_ROWS + row for page in pages for row in range(PAGE_ROWS)]
    for module, weights in zip(pool.modules, packed.modules, strict=True):
        assert weights is not None
        rank = max(weights.ranks)
        assert torch.equal(module.a[rows[:rank]], weights.a)
        assert torch.equal(module.b[rows[:rank]], weights.b)
        others = [row for row in range(6 * PAGE_ROWS) if row not in rows[:rank]]
        assert module.a[others].isnan().all()
        assert module.b[others].isnan().all()


def test_a_slot_knows_the_rank_of_every_slice_until_it_is_unbound(world: World, pool: TorchRankPool):
    packed = world.runtime.reader.read(source_of(world.adapters["narrow"]))
    pool.write((3,), packed)
    pool.bind(1, (3,), packed)
    assert pool.modules[0].ranks(1) == (3, 0, 3)  # q, k, v
    assert pool.modules[1].ranks(1) == (0,)  # o
    assert pool.modules[0].ranks(0) == (0, 0, 0)
    pool.unbind(1)
    assert pool.modules[0].view(1) is None


def test_bytes_are_those_of_the_tensors(world: World, pool: TorchRankPool):
    assert pool.num_pages == 6
    assert pool.page_bytes * 6 == sum(module.a.nbytes + module.b.nbytes for module in pool.modules)


def test_an_adapter_packed_by_something_else_is_refused(pool: TorchRankPool):
    class Foreign:
        rank, num_bytes, num_pages = 1, 1, 1

    with pytest.raises(TypeError, match="Foreign was not packed"):
        pool.write((0,), Foreign())


@pytest.mark.parametrize("pages", [(1, 2), (4, 1)])
def test_an_adapter_is_copied_beside_the_steps_and_its_side_with_it(world: World, pages: tuple[int, int]):
    class Watched(BufferedDevice):
        """Tells whether copies were made inside `beside`, and after what."""

        inside = False
        moved: ClassVar[list[bool]] = []

        @contextmanager
        def beside(self) -> Iterator[None]:
            self.inside = True
            yield
            self.inside = False

        def put(self, tensor: torch.Tensor) -> torch.Tensor:
            self.moved.append(self.inside)
            return super().put(tensor)

    device = Watched("meta")
    pool = TorchRankPool(world.runtime.layout, num_slots=2, num_pages=6, dtype=torch.float32, device=device)
    packed = world.runtime.reader.read(source_of(world.adapters["patterned"]))
    scale = Affine(torch.ones(pool.modules[0].b.shape[1]))
    side = SlotSide((scale, *(None for _ in pool.modules[1:])))
    written = pool.write(pages, replace(packed, side=side))
    assert written.side is not None
    assert written.side.affines[0].scale.device.type == "meta"
    assert device.moved
    assert all(device.moved)
    assert not device.inside


def test_what_is_read_for_a_gpu_lies_where_its_copies_can_read(world: World):
    reader, staged = world.runtime.reader, list[torch.Tensor]()

    def staging(tensor: torch.Tensor) -> torch.Tensor:
        staged.append(tensor.clone())
        return staged[-1]

    buffers = Buffers(1 << 20, lambda num_bytes: staging(new_buffer(num_bytes)))
    packed = replace(reader, packer=replace(reader.packer, buffers=buffers, staging=staging)).read(
        source_of(world.adapters["wide"])
    )
    tensors = [tensor for module in packed.modules if module for tensor in (module.a, module.b)]
    assert tensors
    for tensor in tensors:
        begin = tensor.data_ptr()
        assert any(0 <= begin - kept.data_ptr() <= kept.nbytes - tensor.nbytes for kept in staged)
