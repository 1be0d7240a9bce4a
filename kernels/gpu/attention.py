"""Paged attention on a GPU: K and V written by one launch, then torch's `varlen_attn` over block tables.

    o[t] = softmax(scaling · q[t] Kᵀ + mask) V        over the blocks of t's sequence, up to t

Chunks of prompts and decodes are one call. What the library's kernels cannot compute (a soft-cap,
sinks, fp32, other head sizes of V) and what a probe on the device finds missing or wrong, plain
PyTorch computes; `unsupported` says why.
"""

import torch
from torch import Tensor
from torch.nn.attention import current_flash_attention_impl
from torch.nn.attention.varlen import varlen_attn

from kernels.cpu.attention import AttentionOptions, PagedAttention
from kernels.cpu.paging import PagedBatch
from kernels.gpu.library import write_kv
from kernels.gpu.paging import DeviceBatch, gathered

MAX_HEAD_DIM, HEAD_DIM_MULTIPLE = 256, 8
DTYPES = (torch.bfloat16, torch.float16)


class GatheredAttention:
    """Implements `PagedAttention` by plain PyTorch on a step's tensors of the device."""

    def __init__(self, plain: PagedAttention) -> None:
        self._plain = plain
        self._seen: PagedBatch | None = None
        self._batch: PagedBatch | None = None

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        k_cache: Tensor,
        v_cache: Tensor,
        batch: PagedBatch,
        options: AttentionOptions,
    ) -> Tensor:
        """See `PagedAttention.attend`."""
        if self._seen is not batch or self._batch is None:
            # Once a step, for all layers.
            moved = gathered(batch) if isinstance(batch, DeviceBatch) else batch
            self._seen, self._batch = batch, moved
        return self._plain.attend(
            query, key, value, k_cache=k_cache, v_cache=v_cache, batch=self._batch, options=options
        )


class VarlenAttention:
    """Implements `PagedAttention` by `torch.nn.attention.varlen.varlen_attn`."""

    def __init__(self, other: PagedAttention) -> None:
        self._other = other

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        k_cache: Tensor,
        v_cache: Tensor,
        batch: PagedBatch,
        options: AttentionOptions,
    ) -> Tensor:
        """See `PagedAttention.attend`."""
        if not isinstance(batch, DeviceBatch) or refused_options(options) or query.dtype != k_cache.dtype:
            return self._other.attend(
                query, key, value, k_cache=k_cache, v_cache=v_cache, batch=batch, options=options
            )
        write_kv(key, value, k_cache, v_cache, batch.rows)
        return paged_varlen(query, k_cache, v_cache, batch, options)


def paged_varlen(
    query: Tensor, k_cache: Tensor, v_cache: Tensor, batch: DeviceBatch, options: AttentionOptions
) -> Tensor:
    """Attend every token to its sequence's cache: query [num_tokens, heads, head_dim], the same out."""
    table, window = batch.table, options.sliding_window
    out = varlen_attn(
        query,
        k_cache,
        v_cache,
        table.starts,
        # The kernels that torch has built in want the sums; those it can be given refuse them.
        table.ends if current_flash_attention_impl() is None else None,
        table.max_length,
        table.max_context,
        scale=options.scaling,
        # A window counts the token itself; here it is how far back a token looks.
        window_size=(-1, 0) if window is None else (window - 1, 0),
        enable_gqa=query.shape[1] != k_cache.shape[2],
        seqused_k=table.contexts,
        block_table=table.blocks,
    )
    assert isinstance(out, Tensor), "nothing but the output was asked for"
    return out


def refused_options(options: AttentionOptions) -> str | None:
    """Why `varlen_attn` cannot attend with these options; None: it can."""
    if options.softcap is not None:
        return "a soft-cap of scores"
    return "attention sinks" if options.sinks is not None else None


def refused_shape(k_head_dim: int, v_head_dim: int, dtype: torch.dtype) -> str | None:
    """Why `varlen_attn` cannot attend over a cache of these shapes; None: it can."""
    if dtype not in DTYPES:
        return f"{dtype}"
    if k_head_dim != v_head_dim:
        return f"heads of {k_head_dim} in K and {v_head_dim} in V"
    if k_head_dim > MAX_HEAD_DIM or k_head_dim % HEAD_DIM_MULTIPLE:
        return f"a head size of {k_head_dim}: no multiple of {HEAD_DIM_MULTIPLE} up to {MAX_HEAD_DIM}"
    return None
