"""Paged attention and the KV write on a device against plain PyTorch, with torch and Triton alone.

What the engine serves with, without the engine: a plain image lacks packages that the whole engine needs,
and these launches must not go unchecked for that. A check gives what is wrong, or None.
"""

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from kernels.cpu.attention import AttentionOptions, PagedAttention, TorchAttention
from kernels.cpu.paging import PagedBatch, PagedChunk, paged_batch
from kernels.gpu.library import write_kv
from kernels.gpu.paging import ChunkTable, chunk_table, on_device
from kernels.gpu.probe import TOLERANCE, CacheShape, probe
from tests.kernels.triton import step_time

DTYPES = (torch.bfloat16, torch.float16)
BLOCK_SIZE = 256  # tokens: what a worker on a GPU takes, because torch's kernel takes multiples of it alone
HEAD_DIMS, NUM_HEADS, NUM_KV_HEADS = (64, 128), 32, 8
UNLIKE_HEADS = (24, 40)  # of K and V
LENGTHS = (1, 2, 255, 256, 257, 700, 1024, 1500)  # contexts of decodes
PROMPTS = ((0, 300), (500, 200))  # past, length
WINDOWS = (None, 100)  # tokens
NUM_WRITTEN = 300  # tokens

Check = Callable[[], str | None]


@dataclass(frozen=True, slots=True)
class Step:
    """One layer's attention of a step, in host memory."""

    batch: PagedBatch
    table: ChunkTable
    values: tuple[Tensor, ...]  # query, key, value, k_cache, v_cache

    def tensors(self) -> tuple[Tensor, ...]:
        """What a device must have."""
        return (*self.values, self.batch.rows, *self.table.tensors())


def paged(device: str) -> list[dict[str, Any]]:
    """Every check, by name."""
    return [{"check": name, "wrong": attempted(check)} for name, check in checks(torch.device(device))]


def checks(device: torch.device) -> Iterator[tuple[str, Check]]:
    """Of the KV write, then of attention: probed, over a large step, and replayed by a graph."""
    heads = (*((size, size) for size in HEAD_DIMS), UNLIKE_HEADS)
    for dtype, sizes, rows in product(DTYPES, heads, (torch.int32, torch.int64)):
        yield f"kv_write {sizes} {dtype} {rows}", partial(written, device, dtype, sizes, rows)
    for dtype, size in product(DTYPES, HEAD_DIMS):
        shape = CacheShape(NUM_KV_HEADS, size, BLOCK_SIZE, dtype)
        yield f"probe {shape}", partial(probed, device, shape)
        for window in WINDOWS:
            yield f"attention {shape} window {window}", partial(attended, device, shape, window)
        yield f"replayed attention {shape}", partial(replayed, device, shape)


def attempted(check: Check) -> str | None:
    """What a check finds, or how it fails: the others are worth having even then."""
    try:
        return check()
    except Exception as error:  # whatever a device or an older torch raises is the result
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"


def written(
    device: torch.device, dtype: torch.dtype, sizes: tuple[int, int], rows_dtype: torch.dtype
) -> str | None:
    """The KV write against indexing, by bits: K and V are views of a fused projection's output."""
    width, generator = NUM_KV_HEADS * sum(sizes), torch.Generator().manual_seed(0)
    fused = torch.randn(NUM_WRITTEN, width + 16, generator=generator).to(dtype)
    parts = fused[:, :width].split([NUM_KV_HEADS * size for size in sizes], dim=1)
    news = [part.unflatten(1, (NUM_KV_HEADS, -1)) for part in parts]
    caches = [torch.randn(4, BLOCK_SIZE, NUM_KV_HEADS, size, generator=generator).to(dtype) for size in sizes]
    rows = torch.randperm(4 * BLOCK_SIZE, generator=generator)[:NUM_WRITTEN]
    moved = fused.to(device)
    keys, values = (moved.as_strided(new.shape, new.stride(), new.storage_offset()) for new in news)
    found = [cache.to(device, copy=True) for cache in caches]
    write_kv(keys, values, *found, rows.to(device, rows_dtype))
    for cache, new in zip(caches, news, strict=True):
        cache.view(-1, *cache.shape[2:])[rows] = new
    num_wrong = sum(
        int((cache.view(torch.int16) != other.cpu().view(torch.int16)).sum())
        for cache, other in zip(caches, found, strict=True)
    )
    return f"{num_wrong} elements differ" if num_wrong else None


def probed(device: torch.device, shape: CacheShape) -> str | None:
    """What a worker's start would find."""
    return probe(library_attention(), shape, device)


def attended(device: torch.device, shape: CacheShape, window: int | None) -> str | None:
    """One large step of decodes and chunks of prompts."""
    contexts = [(context - 1, 1) for context in LENGTHS * 3]
    step = made_step(shape, placed([*contexts, *PROMPTS], seed=0), seed=0)
    moved = [tensor.to(device, copy=True) for tensor in step.tensors()]
    return fault(attend(library_attention(), step, moved, window), step, window)


def replayed(device: torch.device, shape: CacheShape) -> str | None:
    """A captured step of decodes, replayed for other sequences than it was captured with."""
    steps = [
        made_step(shape, placed(decodes, seed), seed, room=max(LENGTHS))
        for seed, decodes in enumerate(
            [(context - 1, 1) for context in (*LENGTHS[turn:], *LENGTHS[:turn])] for turn in range(3)
        )
    ]
    attention = library_attention()
    held = [tensor.to(device, copy=True) for tensor in steps[0].tensors()]
    out = torch.empty_like(held[0])
    graph = step_time.capture(lambda: out.copy_(attend(attention, steps[0], held, None)))
    for step in steps:
        for place, tensor in zip(held, step.tensors(), strict=True):
            place.copy_(tensor)
        graph.replay()
        if wrong := fault(out, step, None):
            return wrong
    return None


def library_attention() -> PagedAttention:
    """What a worker on a GPU attends with; plain PyTorch must not stand in for it."""
    # Here, because a torch that is too old has no such kernel: that is these checks' fault alone.
    from kernels.gpu.attention import VarlenAttention

    class Never:
        def attend(self, *args: Any, **kwargs: Any) -> Tensor:
            raise AssertionError("plain PyTorch was asked")

    return VarlenAttention(Never())


def placed(lengths: Sequence[tuple[int, int]], seed: int) -> list[PagedChunk]:
    """Chunks of (past, length) whose blocks are scattered over the cache."""
    counts = [-(-sum(each) // BLOCK_SIZE) for each in lengths]
    free = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(seed)).tolist()
    return [
        PagedChunk(past, length, tuple(free.pop() for _ in range(count)))
        for (past, length), count in zip(lengths, counts, strict=True)
    ]


def made_step(shape: CacheShape, chunks: Sequence[PagedChunk], seed: int, room: int | None = None) -> Step:
    """Random values; `room` as a captured graph has it."""
    batch, generator = paged_batch(chunks, shape.block_size), torch.Generator().manual_seed(seed)
    num_tokens, num_blocks = len(batch.rows), 1 + max(max(chunk.blocks) for chunk in chunks)
    cache = (num_blocks, shape.block_size, shape.num_heads, shape.head_dim)
    token = (num_tokens, shape.num_heads, shape.head_dim)
    sizes = ((num_tokens, NUM_HEADS, shape.head_dim), token, token, cache, cache)
    values = tuple(torch.randn(size, generator=generator).to(shape.dtype) for size in sizes)
    return Step(batch, chunk_table(chunks, shape.block_size, room), values)


def attend(attention: PagedAttention, step: Step, moved: Sequence[Tensor], window: int | None) -> Tensor:
    """The step with its tensors where they were moved to."""
    query, key, value, k_cache, v_cache, rows, *table = moved
    batch = on_device(step.batch, step.table.moved(table), rows)
    options = AttentionOptions(query.shape[2] ** -0.5, sliding_window=window)
    return attention.attend(query, key, value, k_cache=k_cache, v_cache=v_cache, batch=batch, options=options)


def fault(found: Tensor, step: Step, window: int | None) -> str | None:
    """How far it is from plain PyTorch in fp32 on the host."""
    query, key, value, k_cache, v_cache = (tensor.float() for tensor in step.values)
    options = AttentionOptions(query.shape[2] ** -0.5, sliding_window=window)
    expected = TorchAttention().attend(
        query, key, value, k_cache=k_cache, v_cache=v_cache, batch=step.batch, options=options
    )
    worst = float((found.cpu().float() - expected).abs().max() / expected.abs().max())
    return None if worst < TOLERANCE else f"it differs by {worst:.1e} of the largest value"
