from pathlib import Path

import pytest
from transformers import AutoConfig

from tests.benchmarks.bandwidth import token_bytes
from tests.benchmarks.step_bench import StepBench
from tests.tiny import make_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def bench(model: Path) -> StepBench:
    return StepBench(model, max_loras=4, max_lora_rank=16, kv_cache_bytes=1 << 20, cpu_kernels="torch")


def test_plans_with_and_without_adapters_differ_in_their_slots_alone(bench: StepBench):
    base, lora = bench.decodes(5, 20, 0), bench.decodes(5, 20, 2)
    assert [chunk.slot for chunk in base.chunks] == [None] * 5
    assert [chunk.slot for chunk in lora.chunks] == [0, 1, 0, 1, 0]
    shapes = [[(c.start, len(c.token_ids), c.block_table) for c in plan.chunks] for plan in (base, lora)]
    assert shapes[0] == shapes[1]


def test_no_two_streams_share_a_block(bench: StepBench):
    blocks = [block for chunk in bench.decodes(6, 33, 0).chunks for block in chunk.block_table]
    assert len(blocks) == len(set(blocks)) == 6 * 3  # 34 tokens in blocks of 16


def test_placed_adapters_have_slots_and_pages_of_their_own(bench: StepBench):
    packer = bench.runtime.reader.packer
    for ranks in ((16, 8, 16), (8, 8)):
        bench.place([packer.dummy(rank) for rank in ranks])
        bound = [rows for rows in bench.runtime.rank_pool.slots.rows if rows]
        assert [max(map(max, rows.ranks)) for rows in bound] == list(ranks)
        pages = [page for rows in bound for page in rows.pages]
        assert len(pages) == len(set(pages))


def test_a_step_reads_every_weight_but_the_embedding_and_the_keys_and_values_before_it(
    model: Path, bench: StepBench
):
    config = AutoConfig.from_pretrained(model)
    hidden, inner = config.hidden_size, config.intermediate_size
    layer = 2 * hidden * hidden + 2 * hidden * hidden // 2 + 3 * hidden * inner  # 2 of 4 heads have K and V
    weights = config.num_hidden_layers * layer + config.vocab_size * hidden
    kv_of_a_token = config.num_hidden_layers * 2 * hidden // 2
    assert token_bytes(bench.runtime.layout, config, 0) == 2 * weights
    assert token_bytes(bench.runtime.layout, config, 10) == 2 * (weights + 10 * kv_of_a_token)
