import pytest
import torch

from data_plane.adapters.pool import TorchRankPool
from kernels.lora.pool import PAGE_ROWS
from tests.data_plane.world import World, source_of


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
