"""The demo's model and adapters against PEFT, in fp32: the numbers that make everything else worth it."""

import pytest

from data_plane.config import EngineConfig
from data_plane.engine.runtime import Runtime, build_runtime
from tests.data_plane.batch_driver import Sequence, logits, step
from tests.data_plane.world import source_of
from tests.oracle import ADAPTERS_DIR, MODEL_DIR, PeftOracle

pytestmark = pytest.mark.model
ADAPTERS = ["acme/pirate", "acme/json-only", "globex/legalese"]
PROMPTS = [
    "The capital of France is",
    "Write a short poem about rain and the sea:",
    "Q: What is 2 + 2?\nA:",
    "The sun rises in the",
]


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    runtime = build_runtime(
        EngineConfig(
            model=MODEL_DIR,
            dtype="float32",
            kv_cache_bytes=1 << 27,
            max_loras=3,
            adapter_roots=(ADAPTERS_DIR,),
        )
    )
    for slot, name in enumerate(ADAPTERS):
        packed = runtime.reader.read(source_of(ADAPTERS_DIR / name))
        pages = tuple(range(2 * slot, 2 * slot + packed.num_pages))
        runtime.rank_pool.write(pages, packed)
        runtime.rank_pool.bind(slot, pages, packed)
    return runtime


def test_mixed_batch_of_the_real_model_equals_peft(runtime: Runtime):
    oracle = PeftOracle(MODEL_DIR)
    sequences = [
        Sequence(i, runtime.tokenizer(text)["input_ids"], slot, tuple(range(4 * i, 4 * i + 4)), chunk_size=5)
        for i, (text, slot) in enumerate(zip(PROMPTS, [0, 1, 2, None], strict=True))
    ]
    whole = [Sequence(s.number, s.prompt, s.slot, s.blocks) for s in sequences]
    for sequence, found in zip(whole, logits(runtime, whole), strict=True):
        expected = oracle.logits(sequence.prompt, directory(sequence))[-1]
        assert (found - expected).abs().max() / expected.abs().max() < 1e-4

    while min(len(sequence.output) for sequence in sequences) < 24:
        step(runtime, sequences)
    for sequence in sequences:
        assert sequence.output[:24] == oracle.greedy(sequence.prompt, directory(sequence), 24)


def directory(sequence: Sequence):
    return None if sequence.slot is None else ADAPTERS_DIR / ADAPTERS[sequence.slot]
