"""The embedding and the output head of the base model, with the changes of the step's adapters.

Both keep the module of the definition, and its weight with it: tied weights stay tied. Knows the
step only through StepState. Invariant: rows of tokens whose adapter leaves an end alone are the
definition's own, bit for bit.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from data_plane.adapters.layout import End
from data_plane.models.step import StepState
from kernels.lora.end_ops import EndOps


class AdaptedEmbedding(nn.Module):
    """Stands where the embedding of the definition stood."""

    def __init__(self, base: nn.Embedding, ops: EndOps, state: StepState) -> None:
        super().__init__()
        self.base, self._ops, self._state = base, ops, state
        self._multiplier = _multiplier_of(base)

    @property
    def weight(self) -> Tensor:
        """The definition's."""
        return self.base.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Embeddings [1, num_tokens, width] of `ids` [1, num_tokens]."""
        out: Tensor = self.base(ids)
        segments = self._state.segments
        if segments is not None:
            self._ops.change_embeddings(ids[0], segments, multiplier=self._multiplier, out=out[0])
        return out


class AdaptedHead(nn.Module):
    """Stands where the output head of the definition stood."""

    def __init__(self, base: nn.Linear, ops: EndOps, state: StepState) -> None:
        super().__init__()
        self.base, self._ops, self._state = base, ops, state

    @property
    def weight(self) -> Tensor:
        """The definition's."""
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        """Logits [1, num_rows, vocab_size] of the rows that the step wants, `x` [1, num_rows, hidden]."""
        out: Tensor = self.base(x)
        segments, rows = self._state.segments, self._state.logit_rows
        if segments is not None and rows is not None:
            self._ops.change_logits(x[0], segments, rows, out=out[0])
        return out


def find_embedding(model: PreTrainedModel) -> End | None:
    """The input embedding, when it is a table whose rows are looked up and at most multiplied."""
    module = model.get_input_embeddings()
    if not isinstance(module, nn.Embedding) or module.max_norm is not None:
        return None
    shape = (module.num_embeddings, module.embedding_dim)
    return End(_name_of(model, module), *shape, weight_shape=shape)


def find_head(model: PreTrainedModel) -> End | None:
    """The output head, when it is a plain linear layer."""
    module = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if type(module) is not nn.Linear:
        return None
    inside, outside = module.in_features, module.out_features
    return End(
        _name_of(model, module),
        inside,
        outside,
        weight_shape=(outside, inside),
        has_bias=module.bias is not None,
    )


def are_tied(model: PreTrainedModel, embedding: End | None, head: End | None) -> bool:
    """Whether both ends compute with one weight."""
    if embedding is None or head is None:
        return False
    one, other = (model.get_submodule(end.name).weight for end in (embedding, head))
    return isinstance(one, Tensor) and isinstance(other, Tensor) and one.data_ptr() == other.data_ptr()


def adapt_ends(
    model: PreTrainedModel, embedding: End | None, head: End | None, ops: EndOps, state: StepState
) -> None:
    """Replace the ends that can carry an adapter."""
    for end, kind in ((embedding, AdaptedEmbedding), (head, AdaptedHead)):
        if end is not None:
            module: nn.Module = kind(model.get_submodule(end.name), ops, state)  # type: ignore[arg-type]
            model.set_submodule(end.name, module)


def _name_of(model: PreTrainedModel, module: nn.Module) -> str:
    names: list[str] = [name for name, candidate in model.named_modules() if candidate is module]
    return names[0]


def _multiplier_of(embedding: nn.Embedding) -> Tensor:
    """What it multiplies rows with, as Gemma 3's does; [] fp32 on the device: nobody reads it back."""
    scale, weight = getattr(embedding, "embed_scale", 1.0), embedding.weight
    if isinstance(scale, Tensor):
        return scale.to(weight.device, weight.dtype).float()
    return torch.full((), float(scale), device=weight.device)
