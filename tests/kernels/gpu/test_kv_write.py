"""The KV write in Triton's interpreter."""

import pytest
import torch

from kernels.gpu.kv_write import KvWriteRefused, kv_write
from tests.kernels.gpu.stand_ins import plain_write_kv

NAN = float("nan")


@pytest.mark.parametrize("rows_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(("k_head", "v_head"), [(64, 64), (24, 40)])
def test_it_stores_what_index_copy_stores_and_touches_nothing_else(
    k_head: int, v_head: int, rows_dtype: torch.dtype
):
    num_tokens, heads = 5, 3
    # K and V as views of a fused projection's output, between columns that are NaN.
    fused = torch.full((num_tokens, heads * (k_head + v_head) + 32), NAN, dtype=torch.float16)
    key = fused[:, 16 : 16 + heads * k_head].view(num_tokens, heads, k_head)
    value = fused[:, 16 + heads * k_head : -16].view(num_tokens, heads, v_head)
    key.copy_(torch.randn(key.shape))
    value.copy_(torch.randn(value.shape))
    caches = [torch.randn(4, 2, heads, size).half() for size in (k_head, v_head)]
    expected = [cache.clone() for cache in caches]
    rows = torch.tensor([6, 0, 3, 7, 2], dtype=rows_dtype)
    kv_write(key, value, *caches, rows)
    plain_write_kv(key, value, *expected, rows.long())
    for found, wanted in zip(caches, expected, strict=True):
        assert torch.equal(found, wanted)


def test_a_cache_of_another_dtype_shape_or_layout_is_refused():
    new, rows = torch.zeros(2, 3, 16), torch.tensor([0, 1])
    cache = torch.zeros(4, 2, 3, 16)
    for wrong in (cache.half(), torch.zeros(4, 2, 2, 16), cache.transpose(0, 1)):
        with pytest.raises(KvWriteRefused):
            kv_write(new, new, cache, wrong, rows)
    with pytest.raises(KvWriteRefused, match="strides"):
        kv_write(torch.zeros(2, 16, 3).transpose(1, 2), new, cache, cache, rows)
