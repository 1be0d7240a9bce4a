"""The embedding and the output head of the base model, with the changes of the step's adapters.

Both keep the module of the definition, and its weight with it: tied weights stay tied. Knows the
step only through StepState. Invariant: rows of tokens whose adapter leaves an end alone are the
definition's own, bit for bit.
"""

from torch import Tensor, nn
from transformers import PreTrainedModel

from data_plane.adapters.layout import End
from data_plane.models.step import StepState
from kernels.lora.changes import change_embeddings, change_logits
from kernels.lora.pool import SlotTable


class AdaptedEmbedding(nn.Module):
    """Stands where the embedding of the definition stood."""

    def __init__(self, base: nn.Embedding, slots: SlotTable, state: StepState) -> None:
        super().__init__()
        self.base, self._slots, self._state = base, slots, state

    @property
    def weight(self) -> Tensor:
        """The definition's."""
        return self.base.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Embeddings [1, num_tokens, width] of `ids` [1, num_tokens]."""
        out: Tensor = self.base(ids)
        segments = self._state.segments
        if segments is not None and self._slots.sided:
            change_embeddings(self._slots, ids[0], segments, multiplier=self._multiplier(), out=out[0])
        return out

    def _multiplier(self) -> Tensor | float:
        """Gemma 3's embedding multiplies what it looks up."""
        scale = getattr(self.base, "embed_scale", 1.0)
        return scale.to(self.base.weight.dtype) if isinstance(scale, Tensor) else float(scale)


class AdaptedHead(nn.Module):
    """Stands where the output head of the definition stood."""

    def __init__(self, base: nn.Linear, slots: SlotTable, state: StepState) -> None:
        super().__init__()
        self.base, self._slots, self._state = base, slots, state

    @property
    def weight(self) -> Tensor:
        """The definition's."""
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        """Logits [1, num_rows, vocab_size] of the rows that the step wants, `x` [1, num_rows, hidden]."""
        out: Tensor = self.base(x)
        segments, rows = self._state.segments, self._state.logit_rows
        if segments is not None and rows is not None and self._slots.sided:
            # Described here and not with the step: few steps need it, and none asks twice.
            change_logits(self._slots, x[0], segments.of_rows(rows), out=out[0])
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
    model: PreTrainedModel, embedding: End | None, head: End | None, slots: SlotTable, state: StepState
) -> None:
    """Replace the ends that can carry an adapter."""
    for end, kind in ((embedding, AdaptedEmbedding), (head, AdaptedHead)):
        if end is not None:
            module: nn.Module = kind(model.get_submodule(end.name), slots, state)  # type: ignore[arg-type]
            model.set_submodule(end.name, module)


def _name_of(model: PreTrainedModel, module: nn.Module) -> str:
    names: list[str] = [name for name, candidate in model.named_modules() if candidate is module]
    return names[0]
