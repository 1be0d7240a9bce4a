import pytest
import torch

from kernels.cpu.attention import AttentionOptions, paged_attention, write_kv
from kernels.cpu.paging import PagedBatch, Prefill

BLOCK_SIZE, KV_HEADS, GROUP, HEAD_DIM = 4, 2, 3, 8
NUM_HEADS = KV_HEADS * GROUP
# past and new tokens of each sequence: decodes first
SEQUENCES = [(0, 1), (6, 1), (11, 1), (0, 9), (5, 7), (8, 4)]
OPTIONS = {
    "plain": AttentionOptions(0.3),
    "window": AttentionOptions(0.3, sliding_window=5),
    "softcap": AttentionOptions(0.3, softcap=2.0),
    "sinks": AttentionOptions(0.3, sinks=torch.linspace(-1, 2, NUM_HEADS)),
    "all": AttentionOptions(0.3, sliding_window=3, softcap=1.5, sinks=torch.linspace(-1, 2, NUM_HEADS)),
}


def visible_scores(query, k, v, position: int, options: AttentionOptions):
    """Scores of one token and head, and the values they weigh, of the keys it may look at."""
    scores = options.scaling * (k @ query)
    if options.softcap:
        scores = options.softcap * torch.tanh(scores / options.softcap)
    first = 0 if options.sliding_window is None else max(0, position - options.sliding_window + 1)
    scores, v = scores[first : position + 1], v[first : position + 1]
    return scores, v


def expected_output(query, k, v, past: int, options: AttentionOptions) -> torch.Tensor:
    out = torch.empty(query.shape, dtype=torch.float64)
    for t in range(query.shape[0]):
        for head in range(NUM_HEADS):
            kv = head // GROUP
            scores, values = visible_scores(query[t, head], k[:, kv], v[:, kv], past + t, options)
            if options.sinks is not None:
                weights = torch.softmax(torch.cat([scores, options.sinks[head : head + 1].double()]), 0)[:-1]
            else:
                weights = torch.softmax(scores, 0)
            out[t, head] = weights @ values
    return out


@pytest.mark.parametrize("name", OPTIONS)
def test_decodes_and_prefills_of_one_step_equal_fp64(name: str):
    torch.manual_seed(0)
    options = OPTIONS[name]
    free = torch.randperm(32).tolist()
    caches = [torch.zeros(32, BLOCK_SIZE, KV_HEADS, HEAD_DIM) for _ in "kv"]
    tables, rows, queries, news, expected = [], [], [], [], []
    for past, new in SEQUENCES:
        blocks = [free.pop() for _ in range(-(-(past + new) // BLOCK_SIZE))]
        where = [blocks[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for p in range(past + new)]
        kv = [torch.randn(past + new, KV_HEADS, HEAD_DIM) for _ in "kv"]
        for cache, values in zip(caches, kv, strict=True):
            cache.view(-1, KV_HEADS, HEAD_DIM)[where[:past]] = values[:past]
        query = torch.randn(new, NUM_HEADS, HEAD_DIM)
        tables.append(blocks)
        rows += where[past:]
        queries.append(query)
        news.append([values[past:] for values in kv])
        expected.append(expected_output(query.double(), kv[0].double(), kv[1].double(), past, options))
    batch = make_batch(tables, rows)
    for cache, new_values in zip(caches, zip(*news, strict=True), strict=True):
        write_kv(cache, torch.cat(new_values), batch)

    found = paged_attention(torch.cat(queries), *caches, batch, options)
    assert torch.allclose(found.double(), torch.cat(expected), rtol=1e-4, atol=1e-5)


def make_batch(tables: list[list[int]], rows: list[int]) -> PagedBatch:
    num_decodes = sum(new == 1 for _, new in SEQUENCES)
    width = max(map(len, tables[:num_decodes]))
    padded = [table + table[-1:] * (width - len(table)) for table in tables[:num_decodes]]
    prefills, first = [], num_decodes
    for (past, new), table in list(zip(SEQUENCES, tables, strict=True))[num_decodes:]:
        prefills.append(Prefill(first, new, past, torch.tensor(table)))
        first += new
    return PagedBatch(
        rows=torch.tensor(rows),
        num_decodes=num_decodes,
        decode_blocks=torch.tensor(padded).flatten(),
        contexts=torch.tensor([past + 1 for past, _ in SEQUENCES[:num_decodes]]),
        block_size=BLOCK_SIZE,
        prefills=tuple(prefills),
    )
