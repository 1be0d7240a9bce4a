"""The interface of changes at both ends of the model, whichever way they are computed.

    embedding  y[t] = W'[id(t)]   or   y[t] + (Aᵀ[id(t)] @ B)        W', A, B of the token's slot
    head       y[r] = x[r] W'ᵀ    or   y[r] + (x[r] @ Aᵀ) @ B        of the slot of the row's token

Implementations: `changes` (any device, no compiler) and Triton kernels (`triton.ends`). Rows of tokens
whose slot leaves an end alone stay bit-equal. See `side` for what a slot has.
"""

from typing import Protocol

from torch import Tensor

from kernels.lora.segments import Segments


class EndOps(Protocol):
    """Called for steps with adapters alone; an implementation knows which of them change an end."""

    def change_embeddings(self, ids: Tensor, segments: Segments, *, multiplier: Tensor, out: Tensor) -> None:
        """Change `out` [num_tokens, width], the base's embeddings of `ids` [num_tokens] int64.

        `multiplier` [] fp32 is what the base model multiplies its rows with.
        """

    def change_logits(self, x: Tensor, segments: Segments, rows: Tensor, *, out: Tensor) -> None:
        """Change `out` [num_rows, vocab_size], the base's logits of `x` [num_rows, in_features].

        `rows` [num_rows] int64 are those of the batch that `segments` describes.
        """
