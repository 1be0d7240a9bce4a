"""The KV write in Triton's interpreter."""

import pytest
import torch

from kernels.gpu.kv_write import KvWriteRefused, kv_write
from tests.kernels.gpu.stand_ins import plain_write_kv

NAN = float("nan")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(("k_head", "v_head"), [(64, 64), (24, 40)])
def test_it_stores_what_index_copy_stores_and_touches_nothing_else(
    k_head: int, v_head: int, rows_dtype: torch.dtype, dtype: torch.dtype
):
    assert stores_what_index_copy_stores(k_head, v_head, rows_dtype, dtype)


def test_rows_past_two_to_the_31_elements_are_reached():
    assert far_rows()


def stores_what_index_copy_stores(
    k_head: int, v_head: int, rows_dtype: torch.dtype, dtype: torch.dtype
) -> bool:
    num_tokens, heads = 5, 3
    # K and V as views of a fused projection's output, between columns that are NaN.
    fused = torch.full((num_tokens, heads * (k_head + v_head) + 32), NAN, dtype=dtype)
    key = fused[:, 16 : 16 + heads * k_head].view(num_tokens, heads, k_head)
    value = fused[:, 16 + heads * k_head : -16].view(num_tokens, heads, v_head)
    key.copy_(torch.randn(key.shape))
    value.copy_(torch.randn(value.shape))
    caches = [torch.randn(4, 2, heads, size).to(dtype) for size in (k_head, v_head)]
    expected = [cache.clone() for cache in caches]
    rows = torch.tensor([6, 0, 3, 7, 2], dtype=rows_dtype)
    kv_write(key, value, *caches, rows)
    plain_write_kv(key, value, *expected, rows.long())
    # By bits: a value is moved, never computed.
    return all(
        torch.equal(found.view(torch.int16), wanted.view(torch.int16))
        for found, wanted in zip(caches, expected, strict=True)
    )


def far_rows() -> bool:
    """The last row of a cache of bytes with 2^31 + 128 elements; whatever wraps lands in memory before it.

    Memory is reserved and never touched but where something is written.
    """
    elements, head = 2**31 + 128, 128
    reserved = torch.empty(2 * elements, dtype=torch.int8)
    k_cache = reserved[elements:].view(-1, 1, 1, head)
    v_cache = torch.zeros(len(k_cache), 1, 1, 1, dtype=torch.int8)
    key, value = torch.full((1, 1, head), 7, dtype=torch.int8), torch.ones(1, 1, 1, dtype=torch.int8)
    rows = torch.tensor([len(k_cache) - 1], dtype=torch.int32)
    k_cache[-1] = 0
    kv_write(key, value, k_cache, v_cache, rows)
    return bool((k_cache[-1] == 7).all()) and bool((v_cache[-1] == 1).all())


def test_a_cache_of_another_dtype_shape_or_layout_is_refused():
    new, rows = torch.zeros(2, 3, 16), torch.tensor([0, 1])
    cache = torch.zeros(4, 2, 3, 16)
    for wrong in (cache.half(), torch.zeros(4, 2, 2, 16), cache.transpose(0, 1)):
        with pytest.raises(KvWriteRefused):
            kv_write(new, new, cache, wrong, rows)
    with pytest.raises(KvWriteRefused, match="strides"):
        kv_write(torch.zeros(2, 16, 3).transpose(1, 2), new, cache, cache, rows)
