from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from kernels.cpu.attention import AttentionOptions, PagedAttention, TorchAttention
from kernels.cpu.native import LEVELS
from kernels.cpu.native_attention import NativeAttention
from kernels.cpu.paging import PagedChunk, paged_batch
from tests.kernels.cpu.implementations import IMPLEMENTATIONS, kernels_at

BLOCK_SIZE, NUM_BLOCKS = 4, 160
# past and new tokens of each sequence: decodes first; some longer than a step of the online softmax
SEQUENCES = [(0, 1), (6, 1), (11, 1), (130, 1), (0, 9), (5, 7), (8, 4), (60, 70)]
SINKS = torch.linspace(-1, 2, 6)
OPTIONS = {
    "plain": AttentionOptions(0.3),
    "window": AttentionOptions(0.3, sliding_window=5),
    "wide window": AttentionOptions(0.3, sliding_window=67),
    "softcap": AttentionOptions(0.3, softcap=2.0),
    "sinks": AttentionOptions(0.3, sinks=SINKS),
    "all": AttentionOptions(0.3, sliding_window=3, softcap=1.5, sinks=SINKS),
}
# heads of the cache, queries a head, K and V head size: odd ones leave a rest after every vector
SHAPES = {"grouped": (2, 3, 8, 8), "odd": (3, 2, 37, 21), "one head": (1, 6, 64, 64), "wide": (6, 1, 128, 96)}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


def implementation(name: str) -> PagedAttention:
    return TorchAttention() if name == "torch" else NativeAttention(kernels_at(name), TorchAttention())


@dataclass
class Sequence:
    """Random queries, keys and values of one sequence, and its blocks, in no order."""

    query: Tensor
    key: Tensor
    value: Tensor
    blocks: tuple[int, ...]

    def rows(self) -> list[int]:
        positions = range(len(self.query))
        return [self.blocks[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for p in positions]


@dataclass
class Problem:
    shape: tuple[int, int, int, int] = SHAPES["grouped"]
    dtype: torch.dtype = torch.float32
    poison: float = 0.0  # what the cache holds where nobody wrote
    num_blocks: int = NUM_BLOCKS
    lengths: list[int] = field(default_factory=lambda: [past + new for past, new in SEQUENCES])

    def __post_init__(self):
        heads, group, k_dim, v_dim = self.shape
        generator = torch.Generator().manual_seed(0)
        free = torch.randperm(self.num_blocks, generator=generator).tolist()
        self.caches = [
            torch.full((self.num_blocks, BLOCK_SIZE, heads, dim), self.poison, dtype=self.dtype)
            for dim in (k_dim, v_dim)
        ]

        def random(*size: int) -> Tensor:
            return torch.randn(*size, generator=generator).to(self.dtype)

        self.sequences = [
            Sequence(
                random(length, heads * group, k_dim),
                random(length, heads, k_dim),
                random(length, heads, v_dim),
                tuple(free.pop() for _ in range(-(-length // BLOCK_SIZE))),
            )
            for length in self.lengths
        ]

    def write(self, sequence: Sequence, length: int) -> None:
        """Put the first tokens of a sequence into the cache, as earlier steps would have."""
        rows = sequence.rows()[:length]
        for cache, values in zip(self.caches, (sequence.key, sequence.value), strict=True):
            cache.view(-1, *cache.shape[2:])[rows] = values[:length]

    def attend(
        self, attention: PagedAttention, options: AttentionOptions, spans: list[tuple[int, int]]
    ) -> Tensor:
        """One step: `spans` are past and new tokens of each sequence."""
        pairs = list(zip(self.sequences, spans, strict=True))

        def step(tensors: list[Tensor]) -> Tensor:
            # Heads first in memory, as transformers leaves them: strides are none of a packed tensor.
            return torch.cat(tensors).transpose(0, 1).contiguous().transpose(0, 1)

        news = [
            step([getattr(s, name)[past : past + new] for s, (past, new) in pairs])
            for name in ("query", "key", "value")
        ]
        batch = paged_batch([PagedChunk(past, new, s.blocks) for s, (past, new) in pairs], BLOCK_SIZE)
        k_cache, v_cache = self.caches
        return attention.attend(*news, k_cache=k_cache, v_cache=v_cache, batch=batch, options=options)


def expected_output(sequence: Sequence, past: int, new: int, group: int, options: AttentionOptions) -> Tensor:
    """The equation, token by token and head by head, in fp64."""
    query, key, value = (t.double() for t in (sequence.query, sequence.key, sequence.value))
    out = torch.empty(new, query.shape[1], value.shape[2], dtype=torch.float64)
    for t in range(new):
        position = past + t
        window = options.sliding_window
        first = 0 if window is None else max(0, position - window + 1)
        for head in range(query.shape[1]):
            seen = slice(first, position + 1)
            scores = options.scaling * (key[seen, head // group] @ query[position, head])
            if options.softcap:
                scores = options.softcap * torch.tanh(scores / options.softcap)
            if options.sinks is not None:
                scores = torch.cat([scores, options.sinks[head : head + 1].double()])
            weights = torch.softmax(scores, 0)[: position + 1 - first]
            out[t, head] = weights @ value[seen, head // group]
    return out


def check(problem: Problem, attention: PagedAttention, options: AttentionOptions) -> None:
    for sequence, (past, _) in zip(problem.sequences, SEQUENCES, strict=True):
        problem.write(sequence, past)
    found = problem.attend(attention, options, SEQUENCES)
    expected = torch.cat(
        [
            expected_output(sequence, past, new, problem.shape[1], options)
            for sequence, (past, new) in zip(problem.sequences, SEQUENCES, strict=True)
        ]
    )
    assert (found.double() - expected).abs().max() / expected.abs().max() < TOLERANCE[problem.dtype]


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("options", OPTIONS)
def test_decodes_and_prefills_of_one_step_equal_fp64(name: str, options: str):
    check(Problem(), implementation(name), OPTIONS[options])


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
def test_any_head_size_and_group_equals_fp64(name: str, shape: str, dtype: torch.dtype):
    check(Problem(shape=SHAPES[shape], dtype=dtype), implementation(name), OPTIONS["wide window"])


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize(("shape", "dtype"), [("grouped", torch.float32), ("wide", torch.bfloat16)])
@pytest.mark.parametrize("options", ["plain", "window"])
def test_nothing_that_the_sequences_did_not_write_is_read(
    name: str, options: str, shape: str, dtype: torch.dtype
):
    problem = Problem(shape=SHAPES[shape], dtype=dtype, poison=float("nan"))
    check(problem, implementation(name), OPTIONS[options])


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("shape", ["grouped", "one head"])  # rows as they lie, and packed ones
@pytest.mark.parametrize("options", ["plain", "wide window"])
def test_a_prompt_in_chunks_has_the_bits_of_the_whole(name: str, options: str, shape: str):
    problem = Problem(shape=SHAPES[shape], lengths=[150], dtype=torch.bfloat16)
    attention = implementation(name)
    whole = problem.attend(attention, OPTIONS[options], [(0, 150)])
    spans = [(0, 7), (7, 64), (71, 1), (72, 78)]
    chunks = [problem.attend(attention, OPTIONS[options], [span]) for span in spans]
    assert torch.equal(torch.cat(chunks), whole)


@pytest.mark.parametrize("name", LEVELS)
def test_a_sequence_has_the_same_bits_in_every_batch_and_with_every_number_of_threads(name: str):
    together, alone = Problem(lengths=[90, 20, 40]), Problem(lengths=[90])
    attention, threads = implementation(name), torch.get_num_threads()
    whole = together.attend(attention, OPTIONS["plain"], [(0, 90), (0, 20), (0, 40)])
    alone.sequences[0] = together.sequences[0]
    try:
        torch.set_num_threads(1)
        found = alone.attend(attention, OPTIONS["plain"], [(0, 90)])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found, whole[:90])


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("options", ["plain", "wide window", "all"])
def test_one_of_many_decodes_has_the_bits_of_one_alone(name: str, options: str):
    # So many that a thread takes all heads of a sequence at once.
    pasts = [69 - n for n in range(16 * 2)]
    problem = Problem(
        shape=SHAPES["wide"], dtype=torch.bfloat16, lengths=[past + 1 for past in pasts], num_blocks=640
    )
    chosen, attention = OPTIONS[options], implementation(name)
    for sequence, past in zip(problem.sequences, pasts, strict=True):
        problem.write(sequence, past)
    together = problem.attend(attention, chosen, [(past, 1) for past in pasts])
    sequences = problem.sequences
    for row, past in enumerate(pasts):
        problem.sequences = sequences[row : row + 1]
        alone = problem.attend(attention, chosen, [(past, 1)])
        assert torch.equal(alone, together[row : row + 1])


def test_what_the_kernels_cannot_read_is_computed_by_pytorch():
    problem = Problem(dtype=torch.float16, lengths=[9])
    native, plain = implementation("plain"), TorchAttention()
    expected = problem.attend(plain, OPTIONS["plain"], [(0, 9)])
    assert torch.equal(problem.attend(native, OPTIONS["plain"], [(0, 9)]), expected)
