"""The KV write's numerics can fail: each way to break the kernel is noticed."""

from pathlib import Path

import pytest
import torch

from kernels.gpu import kv_write
from tests.kernels.gpu.test_kv_write import far_rows, stores_what_index_copy_stores
from tests.kernels.triton.test_mutations import mutant

# fmt: off
CHANGES = {
    "heads of V lie as heads of K": ("token.to(tl.int64) * v_stride_token + head * v_stride_head", "token.to(tl.int64) * v_stride_token + head * k_stride_head"),  # noqa: E501
    "V is cut to a head of K": ("tl.store(v_cache + row * V_HEAD + at, tl.load(v_from + at, mask=in_v), mask=in_v)", "tl.store(v_cache + row * V_HEAD + at, tl.load(v_from + at, mask=in_k), mask=in_k)"),  # noqa: E501
    "every token is written to the first row": ("tl.load(rows + token)", "tl.load(rows)"),
    "values are rounded": ("tl.load(k_from + at, mask=in_k), mask=in_k)", "(tl.load(k_from + at, mask=in_k).to(tl.float32) * 1.01).to(k_cache.dtype.element_ty), mask=in_k)"),  # noqa: E501
}
NARROW = ("tl.load(rows + token).to(tl.int64) * num_heads", "tl.load(rows + token) * num_heads")
# fmt: on


def broken(change: tuple[str, str], directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = mutant(kv_write, change, directory)
    monkeypatch.setattr(kv_write, "_kv_write_kernel", made._kv_write_kernel)


@pytest.mark.parametrize("name", CHANGES)
def test_a_broken_kv_write_is_caught(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    broken(CHANGES[name], tmp_path, monkeypatch)
    assert not stores_what_index_copy_stores(24, 40, torch.int64, torch.bfloat16)


def test_addresses_in_32_bits_are_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    broken(NARROW, tmp_path, monkeypatch)
    assert not far_rows()
