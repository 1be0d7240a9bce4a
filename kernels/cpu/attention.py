"""Paged attention on the CPU in plain PyTorch.

    o[t] = softmax(scaling · q[t] Kᵀ + mask) V        over the blocks of t's sequence, up to t

K and V of a layer are [num_blocks, block_size, num_kv_heads, head_dim]. All one-token chunks of a
step are computed together: their blocks are gathered and the queries of one KV head are packed as
rows, [N, kv_heads, group, head_dim], because SDPA with `enable_gqa` and a mask is 4–6x slower.
A longer chunk is computed by itself; one without a past needs no mask.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.cpu.paging import PagedBatch, Prefill


@dataclass(frozen=True, slots=True)
class AttentionOptions:
    """What a layer adds to plain causal attention."""

    scaling: float
    sliding_window: int | None = None  # a token sees this many, itself included
    softcap: float | None = None  # scores become softcap * tanh(scores / softcap)
    sinks: Tensor | None = None  # [num_heads]: a logit a head that takes probability and gives nothing


class PagedAttention(Protocol):
    """Attention over the paged cache, whichever way it is computed."""

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
        """Store the step's K and V, then attend every token to its sequence's cache.

        query, key, value [num_tokens, heads, head_dim], any strides but the last's →
        [num_tokens, num_heads, v_head_dim]
        """


class TorchAttention:
    """Implements `PagedAttention` in plain PyTorch."""

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
        write_kv(k_cache, key, batch)
        write_kv(v_cache, value, batch)
        return paged_attention(query, k_cache, v_cache, batch, options)


def paged_attention(
    query: Tensor, k_cache: Tensor, v_cache: Tensor, batch: PagedBatch, options: AttentionOptions
) -> Tensor:
    """Attend every token of the step to its sequence's cache, which holds the step's own K and V too.

    query [num_tokens, num_heads, head_dim] → [num_tokens, num_heads, v_head_dim]; tokens
    [0, num_decodes) are one-token chunks, then come the prefills.
    """
    parts = []
    if batch.num_decodes:
        parts.append(_decode(query[: batch.num_decodes], k_cache, v_cache, batch, options))
    for prefill in batch.prefills:
        rows = query[prefill.first_row : prefill.first_row + prefill.length]
        parts.append(_prefill(rows, k_cache, v_cache, prefill, options))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def write_kv(cache: Tensor, values: Tensor, batch: PagedBatch) -> None:
    """Store `values` [num_tokens, num_kv_heads, head_dim] at the tokens' rows of the cache."""
    cache.view(-1, *cache.shape[2:]).index_copy_(0, batch.rows, values)


def _decode(
    query: Tensor, k_cache: Tensor, v_cache: Tensor, batch: PagedBatch, options: AttentionOptions
) -> Tensor:
    num_seqs, num_heads, head_dim = query.shape
    kv_heads = k_cache.shape[2]
    k = _gather(k_cache, batch.decode_blocks, num_seqs)
    v = _gather(v_cache, batch.decode_blocks, num_seqs)
    packed = query.reshape(num_seqs, kv_heads, num_heads // kv_heads, head_dim)
    mask = batch.decode_mask(query.dtype, options.sliding_window)
    return _attend(packed, k, v, mask, options).reshape(num_seqs, num_heads, -1)


def _gather(cache: Tensor, blocks: Tensor, num_seqs: int) -> Tensor:
    """[num_seqs, num_kv_heads, context, head_dim], a view of the gathered blocks."""
    gathered = cache.view(cache.shape[0], -1).index_select(0, blocks)
    return gathered.view(num_seqs, -1, *cache.shape[2:]).transpose(1, 2)


def _prefill(
    query: Tensor, k_cache: Tensor, v_cache: Tensor, prefill: Prefill, options: AttentionOptions
) -> Tensor:
    length, num_heads, head_dim = query.shape
    kv_heads = k_cache.shape[2]
    context = prefill.past + length
    k = _gather(k_cache, prefill.blocks, 1)[:, :, :context]
    v = _gather(v_cache, prefill.blocks, 1)[:, :, :context]
    heads = query.transpose(0, 1)[None]
    window = options.sliding_window
    if not prefill.past and _is_plain(options) and (window is None or window >= length):
        out = F.scaled_dot_product_attention(
            heads, k, v, is_causal=True, scale=options.scaling, enable_gqa=kv_heads != num_heads
        )
        return out[0].transpose(0, 1)
    group = num_heads // kv_heads
    packed = heads.reshape(1, kv_heads, group * length, head_dim)
    mask = prefill.mask(query.dtype, window, group)[None, None]
    out = _attend(packed, k, v, mask, options)
    return out.reshape(num_heads, length, -1).transpose(0, 1)


def _is_plain(options: AttentionOptions) -> bool:
    return options.softcap is None and options.sinks is None


def _attend(query: Tensor, k: Tensor, v: Tensor, mask: Tensor, options: AttentionOptions) -> Tensor:
    """Attention of packed queries [N, kv_heads, group * length, head_dim]; mask broadcasts over heads."""
    if _is_plain(options):
        mask = mask.expand(query.shape[0], query.shape[1], query.shape[2], k.shape[2])
        return F.scaled_dot_product_attention(query, k, v, attn_mask=mask, scale=options.scaling)
    scores = torch.matmul(query, k.transpose(2, 3)).float() * options.scaling
    if options.softcap is not None:
        scores = options.softcap * torch.tanh(scores / options.softcap)
    scores = scores + mask.float()
    if options.sinks is not None:
        # A column per head that is dropped again after the softmax: it only takes probability.
        length = query.shape[2] * query.shape[1] // options.sinks.shape[0]
        sinks = options.sinks.float().view(query.shape[1], -1).repeat_interleave(length, dim=1)
        column = sinks[None, :, :, None].expand(query.shape[0], -1, -1, 1)
        weights = torch.softmax(torch.cat([scores, column], dim=-1), dim=-1)[..., :-1]
    else:
        weights = torch.softmax(scores, dim=-1)
    return torch.matmul(weights.to(v.dtype), v)
