"""Paged attention by the C++ kernels: K and V written, then one pass over each sequence's blocks.

Decodes and chunks of prompts are one path: a chunk is `length` queries after `past` tokens. What
the kernels cannot read (fp16, another device) plain PyTorch computes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.cpu.attention import AttentionOptions, PagedAttention
from kernels.cpu.calls import DTYPES, AttentionCall, computable
from kernels.cpu.native import NativeKernels
from kernels.cpu.paging import PagedBatch


@dataclass(frozen=True, slots=True)
class _StepChunks:
    """The chunks of a step, for all layers."""

    batch: PagedBatch  # kept alive: the chunks hold addresses of its blocks
    chunks: Tensor  # [num_chunks, 4] int64: first row, length, past, address of blocks


class NativeAttention:
    """Implements `PagedAttention`."""

    def __init__(self, kernels: NativeKernels, other: PagedAttention) -> None:
        self._kernels, self._other = kernels, other
        self._step: _StepChunks | None = None

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
        tensors = (query, key, value, k_cache, v_cache)
        if not computable(*tensors) or len({tensor.dtype for tensor in tensors}) > 1:
            return self._other.attend(
                query, key, value, k_cache=k_cache, v_cache=v_cache, batch=batch, options=options
            )
        chunks = self.chunks(batch)
        num_tokens, num_heads, head_dim = query.shape
        out = query.new_empty(num_tokens, num_heads, v_cache.shape[3])
        sinks = None if options.sinks is None else options.sinks.float().contiguous()
        self._kernels.attention(
            AttentionCall(
                DTYPES[query.dtype],
                query.data_ptr(),
                key.data_ptr(),
                value.data_ptr(),
                query.stride(0),
                query.stride(1),
                key.stride(0),
                key.stride(1),
                value.stride(0),
                value.stride(1),
                k_cache.data_ptr(),
                v_cache.data_ptr(),
                out.data_ptr(),
                batch.rows.data_ptr(),
                chunks.data_ptr(),
                chunks.shape[0],
                num_tokens,
                num_heads,
                k_cache.shape[2],
                head_dim,
                v_cache.shape[3],
                batch.block_size,
                options.scaling,
                options.softcap or 0.0,
                options.sliding_window or 0,
                None if sinks is None else sinks.data_ptr(),
            )
        )
        return out

    def chunks(self, batch: PagedBatch) -> Tensor:
        """[num_chunks, 4] int64 as the kernels read them; the same for every layer of a step."""
        step = self._step
        if step is None or step.batch is not batch:
            step = self._step = _chunks(batch)
        return step.chunks


def _chunks(batch: PagedBatch) -> _StepChunks:
    width = batch.decode_blocks.shape[0] // max(batch.num_decodes, 1)
    first_block = batch.decode_blocks.data_ptr()
    decodes = [
        (row, 1, context - 1, first_block + row * width * batch.decode_blocks.itemsize)
        for row, context in enumerate(batch.contexts.tolist())
    ]
    prefills = [(p.first_row, p.length, p.past, p.blocks.data_ptr()) for p in batch.prefills]
    return _StepChunks(batch, torch.tensor([*decodes, *prefills], dtype=torch.int64))
