"""Whether a paged attention gives the right numbers on this device: tried at start, not known by name.

Prompts and decodes over scattered blocks, and decodes alone, against plain PyTorch in fp32. What a
build of torch lacks, and block sizes that its kernels do not take, raise here and not in service.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch

from kernels.cpu.attention import AttentionOptions, PagedAttention, TorchAttention
from kernels.cpu.paging import PagedChunk, paged_batch
from kernels.gpu.paging import chunk_table, on_device

TOLERANCE = 2e-2  # of the largest value; half precision keeps 4e-3 of it
GROUP = 2  # query heads a KV head
WINDOW = 5  # tokens
NUM_BLOCKS = 7


@dataclass(frozen=True, slots=True)
class CacheShape:
    """K and V of a layer."""

    num_heads: int
    head_dim: int
    block_size: int
    dtype: torch.dtype


def probe(attention: PagedAttention, shape: CacheShape, device: torch.device) -> str | None:
    """Why `attention` cannot serve caches of this shape; None: it can, with and without a window."""
    for window, chunks in product((None, WINDOW), _steps(shape.block_size)):
        try:
            difference = _difference(attention, shape, device, window, chunks)
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:  # what a build lacks
            return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        if not difference < TOLERANCE:
            return f"its numbers differ by {difference:.1e} from plain attention's (window: {window})"
    return None


def _steps(size: int) -> list[list[PagedChunk]]:
    # A decode in its second block and a fresh one; a fresh prompt, and a chunk across a border.
    decodes = [PagedChunk(size + 1, 1, (4, 1)), PagedChunk(0, 1, (6,))]
    prompts = [PagedChunk(0, 3, (2,)), PagedChunk(max(size - 2, 0), 4, (0, 5, 3))]
    # Libraries compute decodes alone in another way.
    return [[*decodes, *prompts], decodes]


def _difference(
    attention: PagedAttention,
    shape: CacheShape,
    device: torch.device,
    window: int | None,
    chunks: Sequence[PagedChunk],
) -> float:
    size = shape.block_size
    host = paged_batch(chunks, size)
    table = chunk_table(chunks, size)
    batch = on_device(host, table.moved([t.to(device) for t in table.tensors()]), host.rows.to(device))
    generator = torch.Generator().manual_seed(0)

    def random(*sizes: int) -> torch.Tensor:
        return torch.randn(sizes, generator=generator).to(shape.dtype)

    num_tokens = host.rows.shape[0]
    query = random(num_tokens, GROUP * shape.num_heads, shape.head_dim)
    key, value = (random(num_tokens, shape.num_heads, shape.head_dim) for _ in range(2))
    caches = [random(NUM_BLOCKS, size, shape.num_heads, shape.head_dim) for _ in range(2)]
    options = AttentionOptions(shape.head_dim**-0.5, sliding_window=window)
    expected = TorchAttention().attend(
        *(tensor.float() for tensor in (query, key, value)),
        k_cache=caches[0].float(),
        v_cache=caches[1].float(),
        batch=host,
        options=options,
    )
    k_cache, v_cache = (cache.to(device) for cache in caches)
    found = attention.attend(
        *(tensor.to(device) for tensor in (query, key, value)),
        k_cache=k_cache,
        v_cache=v_cache,
        batch=batch,
        options=options,
    )
    return float((found.cpu().float() - expected).abs().max() / expected.abs().max())
