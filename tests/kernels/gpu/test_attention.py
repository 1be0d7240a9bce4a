"""GPU attention with torch's kernel as it is documented; the device's own is probed at every start."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kernels.cpu.attention import AttentionOptions, TorchAttention
from kernels.cpu.paging import PagedChunk, paged_batch
from kernels.gpu import attention as gpu_attention
from kernels.gpu.attention import GatheredAttention, VarlenAttention, refused_options, refused_shape
from kernels.gpu.paging import chunk_table, on_device
from kernels.gpu.probe import CacheShape, probe
from tests.kernels.gpu.stand_ins import documented_varlen_attn, plain_write_kv

CPU = torch.device("cpu")
SHAPES = [CacheShape(2, 16, size, dtype) for size in (4, 16) for dtype in (torch.bfloat16, torch.float16)]


@pytest.fixture
def attend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., VarlenAttention]:
    def make(varlen_attn: Callable[..., Any] = documented_varlen_attn) -> VarlenAttention:
        monkeypatch.setattr(gpu_attention, "varlen_attn", varlen_attn)
        monkeypatch.setattr(gpu_attention, "write_kv", plain_write_kv)
        return VarlenAttention(GatheredAttention(TorchAttention()))

    return make


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_kernel_that_does_as_torch_documents_is_found_right(shape: CacheShape, attend):
    assert probe(attend(), shape, CPU) is None


def test_a_kernel_that_lets_a_token_look_one_too_far_is_found_wrong(attend):
    def wrong(*args: Any, window_size: tuple[int, int], **kwargs: Any) -> torch.Tensor:
        left, right = window_size
        return documented_varlen_attn(*args, window_size=(left + (left >= 0), right), **kwargs)

    reason = probe(attend(wrong), SHAPES[0], CPU)
    assert reason is not None
    assert "differ" in reason


def test_a_kernel_that_aligns_the_first_query_with_the_first_key_is_found_wrong(attend):
    def wrong(query: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return documented_varlen_attn(query.flip(0), *args, **kwargs)

    assert probe(attend(wrong), SHAPES[0], CPU) is not None


def test_what_a_build_refuses_is_the_reason(attend):
    def absent(*args: Any, **kwargs: Any) -> torch.Tensor:
        raise RuntimeError("Paged KV cache block size must be divisible by 256\nsecond line")

    reason = probe(attend(absent), SHAPES[0], CPU)
    assert reason == "RuntimeError: Paged KV cache block size must be divisible by 256"


def test_the_library_s_kernel_is_not_there_on_a_cpu_and_the_probe_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpu_attention, "write_kv", plain_write_kv)
    assert probe(VarlenAttention(TorchAttention()), SHAPES[0], CPU) is not None


@pytest.mark.parametrize("options", [AttentionOptions(0.25, 5), AttentionOptions(0.25, None, 20.0)], ids=str)
def test_plain_attention_on_a_moved_step_equals_plain_attention(options: AttentionOptions, attend):
    size = 4
    chunks = [PagedChunk(5, 1, (4, 1)), PagedChunk(2, 1, (6,)), PagedChunk(3, 6, (0, 5, 3))]
    host, table = paged_batch(chunks, size), chunk_table(chunks, size)
    batch = on_device(host, table, host.rows.clone())
    caches = [torch.randn(7, size, 2, 8) for _ in range(2)]
    query = torch.randn(8, 4, 8)
    key, value = torch.randn(2, 8, 2, 8)
    outs = []
    for kernel, paged in ((TorchAttention(), host), (GatheredAttention(TorchAttention()), batch)):
        k_cache, v_cache = (cache.clone() for cache in caches)
        out = kernel.attend(query, key, value, k_cache=k_cache, v_cache=v_cache, batch=paged, options=options)
        outs.append(out)
    assert torch.equal(*outs)


def test_a_soft_cap_goes_to_plain_attention_and_never_to_the_library(attend):
    def never(*args: Any, **kwargs: Any) -> torch.Tensor:
        raise AssertionError("called")

    size, chunks = 4, [PagedChunk(5, 1, (1, 0))]
    host, table = paged_batch(chunks, size), chunk_table(chunks, size)
    batch, tokens = on_device(host, table, host.rows), torch.randn(1, 2, 8)
    cache = torch.randn(2, size, 2, 8)
    options = AttentionOptions(0.25, softcap=20.0)
    found = attend(never).attend(
        tokens, tokens, tokens, k_cache=cache, v_cache=cache.clone(), batch=batch, options=options
    )
    assert found.shape == (1, 2, 8)


def test_what_the_library_cannot_do_has_a_reason():
    assert refused_options(AttentionOptions(1.0, sliding_window=5)) is None
    assert refused_options(AttentionOptions(1.0, sinks=torch.zeros(2))) == "attention sinks"
    assert refused_shape(64, 64, torch.bfloat16) is None
    assert refused_shape(64, 64, torch.float32) == "torch.float32"
    assert refused_shape(192, 128, torch.float16) == "heads of 192 in K and 128 in V"
    assert "no multiple of 8" in (refused_shape(100, 100, torch.float16) or "")
