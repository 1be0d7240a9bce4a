"""How attention of transformers' model definitions reaches our paged KV cache.

transformers calls the function registered under a name with the attention module first. Ours
asks that module for its `paged` attribute, which was bound when the model was built: the
registry is global, but it holds no state. `scaling`, `sliding_window`, `softcap` and `s_aux` are
honoured. No mask function is registered under that name, so transformers makes no masks: positions
and blocks say everything, and looking for packed sequences would wait for the device each step.
"""

from typing import Any, Protocol

from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from data_plane.errors import ModelRefused
from data_plane.models.step import StepState
from kernels.cpu.attention import AttentionOptions, PagedAttention

ATTENTION = "loraplane_paged"


class Attends(Protocol):
    """What an attention module has as its `paged` attribute."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Tensor:
        """Query [1, heads, num_tokens, head_dim] → [1, num_tokens, heads, v_head_dim]."""


class PagedLayer:
    """One layer's cache, bound to its attention module."""

    def __init__(self, k_cache: Tensor, v_cache: Tensor, state: StepState, attention: PagedAttention) -> None:
        self.k_cache, self.v_cache, self._state = k_cache, v_cache, state
        self._attention = attention

    def attend(self, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Tensor:
        """Store the step's K and V, then attend to everything the sequences have."""
        batch = self._state.batch
        if batch is None:
            raise ModelRefused("attention was called outside a step")
        q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        out = self._attention.attend(
            q, k, v, k_cache=self.k_cache, v_cache=self.v_cache, batch=batch, options=options
        )
        return out[None]


def register() -> None:
    """Make ATTENTION known to transformers; calling it again changes nothing."""
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _attention)


def _attention(  # noqa: PLR0917 - transformers fixes the order
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    options = AttentionOptions(scaling, sliding_window, softcap, s_aux)
    paged: Attends = module.paged  # type: ignore[assignment]
    return paged.attend(query, key, value, options), None
