import torch
from torch import nn

from data_plane.models.divergence import first_difference, joined, recorded


class Sums(nn.Module):
    """A state that runs over all tokens of its row, as no attention of ours would."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.cumsum(1)


def chain(*modules: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Sequential(*modules), nn.Linear(4, 4))


def compare(model: nn.Module) -> str | None:
    parts = [torch.ones(1, 3, 4), torch.full((1, 2, 4), 2.0)]
    apart = [recorded(model, x.shape[1], lambda x=x: model(x)) for x in parts]
    together = recorded(model, 5, lambda: model(torch.cat(parts, dim=1)))
    return first_difference(together, joined(apart))


def test_the_innermost_module_at_fault_is_named_and_not_those_it_misleads():
    assert compare(chain(nn.Tanh(), Sums(), nn.Tanh())) == "1.1"


def test_modules_that_treat_every_token_alike_do_not_differ():
    assert compare(chain(nn.Tanh(), nn.Linear(4, 4))) is None


def test_no_hook_stays_behind():
    model = chain(nn.Tanh())
    compare(model)
    assert not any(module._forward_hooks for module in model.modules())
