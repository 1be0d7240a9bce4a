import torch
import torch.nn.functional as F

from data_plane.models.projection import FusedProjection, ProjectionSlice
from kernels.cpu.linear import PlainLinear


class CountingLinear(PlainLinear):
    calls = 0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().__call__(x)


def make() -> tuple[CountingLinear, torch.Tensor, list[ProjectionSlice]]:
    weight = torch.randn(5, 3)
    linear = CountingLinear(weight, None)
    fused = FusedProjection(linear, (2, 3), None)
    return linear, weight, [ProjectionSlice(fused, 0), ProjectionSlice(fused, 1)]


def test_siblings_share_one_product():
    linear, weight, (first, second) = make()
    x = torch.randn(1, 4, 3)
    assert torch.equal(torch.cat([first(x), second(x)], dim=-1), F.linear(x, weight))
    assert linear.calls == 1


def test_another_input_is_never_answered_with_kept_columns():
    linear, weight, (first, second) = make()
    x, y = torch.randn(1, 4, 3), torch.randn(1, 4, 3)
    first(x)
    assert torch.allclose(second(y), F.linear(y, weight)[..., 2:])
    assert linear.calls == 2


def test_nothing_is_kept_after_the_last_sibling():
    linear, _, (first, second) = make()
    x = torch.randn(1, 4, 3)
    first(x), second(x)
    x.add_(1)  # the same object, another content: what happens to a buffer that is used again
    first(x)
    assert linear.calls == 2
