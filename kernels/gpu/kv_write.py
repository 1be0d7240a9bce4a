"""KV write: the step's K and V into their rows of the paged cache, in one launch.

    cache_k[rows[t], h] = k[t, h]        cache_v[rows[t], h] = v[t, h]

A launch of torch's own costs as much for each of K and V, and takes int64 rows of contiguous
input; here K and V may be views of a fused projection's output.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# (the body of a kernel is Triton's language, not Python's)

import triton
import triton.language as tl
from torch import Tensor


class KvWriteRefused(ValueError):
    """Tensors that the launch would read or write wrongly; nothing was launched."""


@triton.jit
def _kv_write_kernel(
    key,
    value,
    k_cache,
    v_cache,
    rows,
    k_stride_token,
    k_stride_head,
    v_stride_token,
    v_stride_head,
    K_HEAD: tl.constexpr,
    V_HEAD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token, head, num_heads = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    row = tl.load(rows + token).to(tl.int64) * num_heads + head
    at = tl.arange(0, BLOCK)
    k_from = key + token.to(tl.int64) * k_stride_token + head * k_stride_head
    v_from = value + token.to(tl.int64) * v_stride_token + head * v_stride_head
    in_k, in_v = at < K_HEAD, at < V_HEAD
    tl.store(k_cache + row * K_HEAD + at, tl.load(k_from + at, mask=in_k), mask=in_k)
    tl.store(v_cache + row * V_HEAD + at, tl.load(v_from + at, mask=in_v), mask=in_v)


def kv_write(key: Tensor, value: Tensor, k_cache: Tensor, v_cache: Tensor, rows: Tensor) -> None:
    """Store the step's K and V.

    key, value        [num_tokens, num_heads, head_dim]               any strides but the last's
    k_cache, v_cache  [num_blocks, block_size, num_heads, head_dim]   contiguous, like key and value
    rows              [num_tokens] int32 or int64: block * block_size + offset of each token
    """
    for new, cache in ((key, k_cache), (value, v_cache)):
        check(new, cache)
    num_tokens, num_heads = key.shape[:2]
    k_head, v_head = key.shape[2], value.shape[2]
    _kv_write_kernel[(num_tokens, num_heads)](
        key,
        value,
        k_cache,
        v_cache,
        rows,
        key.stride(0),
        key.stride(1),
        value.stride(0),
        value.stride(1),
        K_HEAD=k_head,
        V_HEAD=v_head,
        BLOCK=triton.next_power_of_2(max(k_head, v_head)),
        num_warps=1,
    )


def check(new: Tensor, cache: Tensor) -> None:
    """Refuse what the launch would read or write wrongly."""
    if new.dtype != cache.dtype or new.shape[1:] != cache.shape[2:]:
        raise KvWriteRefused(
            f"{new.dtype} {tuple(new.shape)} is none of a cache of {cache.dtype} {tuple(cache.shape)}"
        )
    if not cache.is_contiguous() or new.stride(2) != 1:
        raise KvWriteRefused(f"strides {new.stride()} and {cache.stride()} are none that the launch reads")
