import pytest
import torch

from tests.data_plane.batch_driver import Sequence, logits, step
from tests.data_plane.world import World
from tests.oracle import PeftOracle

SLOTS = {"wide": 0, "narrow": 1, "patterned": 2}
# Pages that follow each other, pages that do not, and two for rank 16 in the wrong order.
PAGES = {"wide": (0,), "narrow": (7,), "patterned": (5, 2)}


@pytest.fixture(scope="module")
def loaded(world: World) -> World:
    for name, slot in SLOTS.items():
        world.load(name, slot=slot, pages=PAGES[name])
    return world


@pytest.fixture(scope="module")
def oracle(world: World) -> PeftOracle:
    return PeftOracle(world.base)


def prompt(length: int, seed: int) -> list[int]:
    return torch.randint(1, 250, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def blocks(number: int) -> tuple[int, ...]:
    # Spread over the cache and in no order, so that nothing depends on neighbours.
    return tuple(block * 6 + number for block in (3, 0, 9, 4, 12, 1, 8, 5, 7, 2))


def mixed_batch(chunk_size: int = 1000) -> list[Sequence]:
    slots = [None, 0, 1, 2, 0, None]
    return [Sequence(i, prompt(5 + 3 * i, i), slot, blocks(i), chunk_size) for i, slot in enumerate(slots)]


def adapter_dir(world: World, sequence: Sequence):
    name = {slot: name for name, slot in SLOTS.items()}.get(sequence.slot)
    return world.adapters[name] if name else None


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool(((found - expected).abs().max() / expected.abs().max()) < 1e-4)


def test_first_logits_of_a_mixed_batch_equal_peft(loaded: World, oracle: PeftOracle):
    sequences = mixed_batch()
    for sequence, found in zip(sequences, logits(loaded.runtime, sequences), strict=True):
        assert close(found, oracle.logits(sequence.prompt, adapter_dir(loaded, sequence))[-1])


@pytest.mark.parametrize("chunk_size", [1000, 7, 1])
def test_greedy_tokens_equal_peft_whatever_the_prefill_chunks(
    loaded: World, oracle: PeftOracle, chunk_size: int
):
    sequences = mixed_batch(chunk_size)
    while min(len(sequence.output) for sequence in sequences) < 8:
        step(loaded.runtime, sequences)
    for sequence in sequences:
        assert sequence.output[:8] == oracle.greedy(sequence.prompt, adapter_dir(loaded, sequence), 8)


def test_a_sequence_that_joins_a_running_batch_changes_nobody(loaded: World, oracle: PeftOracle):
    first, *others = mixed_batch(chunk_size=4)
    running = [first]
    while min(len(sequence.output) for sequence in [first, *others]) < 6:
        running += others[:1] if others[0] not in running else [o for o in others if o not in running][:1]
        step(loaded.runtime, running)
    for sequence in [first, *others]:
        assert sequence.output[:6] == oracle.greedy(sequence.prompt, adapter_dir(loaded, sequence), 6)


def test_base_tokens_are_bit_equal_with_and_without_adapters_in_the_batch(loaded: World):
    with_adapters = logits(loaded.runtime, mixed_batch())[0]
    base_only = [Sequence(s.number, s.prompt, None, s.blocks) for s in mixed_batch()]
    assert torch.equal(with_adapters, logits(loaded.runtime, base_only)[0])


def test_what_an_earlier_sequence_left_in_a_block_reaches_nobody(loaded: World, oracle: PeftOracle):
    for k_cache, v_cache in loaded.runtime.runner._model._kv.layers:
        k_cache.fill_(float("nan"))
        v_cache.fill_(float("nan"))
    sequences = mixed_batch()
    for _ in range(6):
        step(loaded.runtime, sequences)
    for sequence in sequences:
        assert sequence.output == oracle.greedy(sequence.prompt, adapter_dir(loaded, sequence), 6)


def test_a_prompt_of_one_token_may_come_after_longer_ones(loaded: World, oracle: PeftOracle):
    sequences = [Sequence(i, prompt(length, i), 0, blocks(i)) for i, length in enumerate([5, 1, 7])]
    for sequence, found in zip(sequences, logits(loaded.runtime, sequences), strict=True):
        assert close(found, oracle.logits(sequence.prompt, loaded.adapters["wide"])[-1])


def test_results_come_in_the_order_of_the_plan(loaded: World):
    sequences = mixed_batch()
    expected = logits(loaded.runtime, sequences)
    assert torch.allclose(logits(loaded.runtime, sequences[::-1]).flip(0), expected, rtol=1e-4, atol=1e-4)
