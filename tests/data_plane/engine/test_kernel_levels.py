"""The demo's model at every level of the C++ kernels, in fp32: the tokens that plain PyTorch gives."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from data_plane.config import EngineConfig
from data_plane.engine.cpu_kernels import choose_kernels
from data_plane.engine.cpu_platform import CpuPlatform
from data_plane.engine.runtime import build_runtime
from kernels.cpu.native import LEVELS
from kernels.cpu.toolchain import BuildFailed
from tests.data_plane.batch_driver import Sequence, step
from tests.data_plane.world import source_of
from tests.kernels.cpu.implementations import kernels_at
from tests.oracle import ADAPTERS_DIR, MODEL_DIR

pytestmark = pytest.mark.model
ADAPTERS = ("acme/pirate", "globex/legalese")
PROMPTS = ("The capital of France is", "Write a short poem about rain and the sea:", "The sun rises in the")
NUM_STEPS = 20


def no_compiler() -> Any:
    raise BuildFailed("no C++ compiler (g++) was found")


def greedy(load: Callable[[], Any]) -> list[list[int]]:
    """Tokens of a batch of both adapters and the base, prompts in chunks beside decodes."""
    config = EngineConfig(
        model=MODEL_DIR, dtype="float32", kv_cache_bytes=1 << 26, max_loras=2, adapter_roots=(ADAPTERS_DIR,)
    )
    runtime = build_runtime(config, CpuPlatform(config, choose_kernels("auto", load)))
    for slot, name in enumerate(ADAPTERS):
        packed = runtime.reader.read(source_of(ADAPTERS_DIR / name))
        pages = tuple(range(2 * slot, 2 * slot + packed.num_pages))
        runtime.rank_pool.bind(slot, pages, runtime.rank_pool.write(pages, packed))
    sequences = [
        Sequence(i, runtime.tokenizer(text)["input_ids"], slot, tuple(range(4 * i, 4 * i + 4)), chunk_size=5)
        for i, (text, slot) in enumerate(zip(PROMPTS, (0, 1, None), strict=True))
    ]
    for _ in range(NUM_STEPS):
        step(runtime, sequences)
    return [sequence.output for sequence in sequences]


@pytest.fixture(scope="module")
def of_plain_pytorch() -> list[list[int]]:
    return greedy(no_compiler)


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_gives_the_tokens_of_plain_pytorch(level: str, of_plain_pytorch: list[list[int]]):
    assert greedy(partial(kernels_at, level)) == of_plain_pytorch
