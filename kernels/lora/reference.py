"""The oracle of the LoRA kernels: the equation, token by token, in a dtype of the caller's choice.

    y[t, columns_i] += (x[t] @ A_i[slot(t)]ᵀ) @ B_i[slot(t)]

Slow on purpose: no grouping, no views, nothing it could share a mistake with.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.lora.pool import PAGE_ROWS, LoraModule


def reference_lora(
    x: Tensor,
    module: LoraModule,
    slots: Sequence[int | None],
    base: Tensor,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Return base + LoRA(x) in `dtype`; `slots` names each token's slot, None its absence.

    x [num_tokens, in_features], base [num_tokens, out_features]
    """
    result = base.to(dtype).clone()
    for token, slot in enumerate(slots):
        bound = None if slot is None else module.slots.rows[slot]
        if bound is None:
            continue
        rows = [page * PAGE_ROWS + row for page in bound.pages for row in range(PAGE_ROWS)]
        for i, rank in enumerate(bound.ranks[module.index]):
            for row in rows[:rank]:
                hidden = torch.dot(x[token].to(dtype), module.a[row, i].to(dtype))
                result[token, module.columns[i]] += hidden * module.b[row, module.columns[i]].to(dtype)
    return result
