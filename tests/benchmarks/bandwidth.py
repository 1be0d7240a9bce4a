"""How near one stream's decode is to the memory's limit: bytes touched a second / read bandwidth.

A decode step of one stream reads every weight once: all projections, the output head, and the KV of what
came before; the embedding's one row, norms and activations are left out. Read bandwidth is the best of
several sums, by all threads, of a buffer that no cache holds, taken beside each decode.
"""

import time
from itertools import count
from math import inf, prod

import torch
from transformers import AutoConfig, PretrainedConfig

from data_plane.adapters.layout import AdapterLayout
from tests.benchmarks.interleaved import interleave
from tests.benchmarks.missed import explain_missed
from tests.benchmarks.systems import InProcess
from tests.benchmarks.workload import Workload, random_workload
from tests.oracle import MODEL_DIR

NUM_ROUNDS = 9
BUFFER_BYTES = 1 << 30
PROMPT_TOKENS, NEW_TOKENS = 64, 64
ENGINE = {"dtype": "bfloat16", "kv_cache_bytes": 64 << 20}
# Sums of several types, because none is sure to be bound by memory alone.
DTYPES = (torch.float32, torch.float64, torch.int64)
DECODE, READ = "decode of one stream", "sum of 1 GiB"


def measure() -> dict[str, float]:
    """bandwidth_share_b1, and the bandwidth itself."""
    engine = InProcess(**ENGINE)
    storage = torch.ones(BUFFER_BYTES, dtype=torch.uint8)  # written, so that every page is there
    rounds = interleave(
        {DECODE: lambda number: _decode_rate(engine, number), READ: lambda number: _bandwidth(storage)},
        NUM_ROUNDS,
    )
    rounds.describe("tokens/s or bytes/s")
    config = AutoConfig.from_pretrained(MODEL_DIR)
    num_bytes = token_bytes(engine.runtime.layout, config, PROMPT_TOKENS + NEW_TOKENS // 2)
    bandwidth = rounds.median(READ)
    print(f"  {num_bytes / 1e6:.1f} MB a token; read bandwidth {bandwidth / 1e9:.1f} GB/s")
    figures = {
        "bandwidth_share_b1": rounds.ratio(DECODE, READ) * num_bytes,
        "read_bandwidth_gb_s": bandwidth / 1e9,
    }
    numbers = count(NUM_ROUNDS)
    works = {f"{NEW_TOKENS} tokens": (lambda: engine.run(_workload(next(numbers))), 1)}
    explain_missed(figures, {"bandwidth_share_b1": works})
    engine.close()
    return figures


def _workload(number: int) -> Workload:
    return random_workload(1, prompt_tokens=PROMPT_TOKENS, num_tokens=NEW_TOKENS, seed=f"bandwidth {number}")


def _decode_rate(engine: InProcess, number: int) -> float:
    return engine.run(_workload(number)).decode_rate


def _bandwidth(storage: torch.Tensor) -> float:
    """Bytes a second of reading all of them once, the best of some ways."""
    best_s = inf
    for dtype in DTYPES:
        began_s = time.perf_counter()
        storage.view(dtype).sum()
        best_s = min(best_s, time.perf_counter() - began_s)
    return storage.nbytes / best_s


def token_bytes(layout: AdapterLayout, config: PretrainedConfig, context: int) -> int:
    """Bytes that a decode step of one stream reads after `context` tokens, in bf16."""
    weights = sum(module.in_features * module.out_features for module in layout.modules)
    head = prod(layout.head.weight_shape)
    kv = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * context
    return (weights + head + kv) * torch.bfloat16.itemsize
