"""The demo's model and adapters against PEFT: the numbers that make everything else worth it."""

import pytest
import torch

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


def serving(dtype: str) -> Runtime:
    runtime = build_runtime(
        EngineConfig(
            model=MODEL_DIR,
            dtype=dtype,
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


def sequences_of(runtime: Runtime) -> list[Sequence]:
    return [
        Sequence(i, runtime.tokenizer(text)["input_ids"], slot, tuple(range(4 * i, 4 * i + 4)), chunk_size=5)
        for i, (text, slot) in enumerate(zip(PROMPTS, [0, 1, 2, None], strict=True))
    ]


def test_mixed_batch_of_the_real_model_equals_peft():
    runtime, oracle = serving("float32"), PeftOracle(MODEL_DIR)
    sequences = sequences_of(runtime)
    whole = [Sequence(s.number, s.prompt, s.slot, s.blocks) for s in sequences]
    for sequence, found in zip(whole, logits(runtime, whole), strict=True):
        expected = oracle.logits(sequence.prompt, directory(sequence))[-1]
        assert (found - expected).abs().max() / expected.abs().max() < 1e-4

    while min(len(sequence.output) for sequence in sequences) < 24:
        step(runtime, sequences)
    for sequence in sequences:
        assert sequence.output[:24] == oracle.greedy(sequence.prompt, directory(sequence), 24)


def test_in_bf16_greedy_tokens_are_those_of_fp32_wherever_rounding_does_not_decide():
    runtime, exact = serving("bfloat16"), PeftOracle(MODEL_DIR)
    rounded = PeftOracle(MODEL_DIR, torch.bfloat16)
    sequences = sequences_of(runtime)
    while min(len(sequence.output) for sequence in sequences) < 24:
        step(runtime, sequences)
    num_equal = 0
    for sequence in sequences:
        tokens, text = sequence.output[:24], [*sequence.prompt, *sequence.output[:23]]
        begin = len(sequence.prompt) - 1
        expected = exact.logits(text, directory(sequence))[begin:]
        noise = (rounded.logits(text, directory(sequence))[begin:] - expected).abs().amax()
        chosen = expected[torch.arange(24), torch.tensor(tokens)]
        # As far as PEFT's own bf16 moves two logits against each other, and no further.
        assert (expected.amax(dim=-1) - chosen).max() <= 2 * noise
        num_equal += int((expected.argmax(dim=-1) == torch.tensor(tokens)).sum())
    print(f"{num_equal} of {24 * len(sequences)} greedy tokens in bf16 are those of fp32")
    assert num_equal >= 0.9 * 24 * len(sequences)


def directory(sequence: Sequence):
    return None if sequence.slot is None else ADAPTERS_DIR / ADAPTERS[sequence.slot]
