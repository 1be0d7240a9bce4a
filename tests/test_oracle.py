"""The oracle tells the demo's adapters, their revisions and the base model apart."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from tests.oracle import ADAPTERS_DIR, MODEL_DIR, PeftOracle

pytestmark = pytest.mark.model

JSON_ONLY = ADAPTERS_DIR / "acme" / "json-only"
PIRATE = ADAPTERS_DIR / "acme" / "pirate"
PIRATE_V2 = ADAPTERS_DIR / "acme" / "pirate-v2"
LEGALESE = ADAPTERS_DIR / "globex" / "legalese"
NUM_TOKENS = 12


@pytest.fixture(scope="module")
def oracle() -> PeftOracle:
    return PeftOracle(MODEL_DIR)


@pytest.fixture(scope="module")
def prompt_ids() -> list[int]:
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    return tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]


def test_three_adapters_and_the_base_give_four_answers(oracle: PeftOracle, prompt_ids: list[int]):
    answers = [
        oracle.greedy(prompt_ids, directory, NUM_TOKENS) for directory in (None, JSON_ONLY, PIRATE, LEGALESE)
    ]
    assert len({tuple(answer) for answer in answers}) == 4


def test_second_revision_answers_otherwise_than_the_first(oracle: PeftOracle, prompt_ids: list[int]):
    first, second = (oracle.greedy(prompt_ids, directory, NUM_TOKENS) for directory in (PIRATE, PIRATE_V2))
    assert first != second


def test_base_logits_are_bit_equal_beside_an_adapter_and_after_it(prompt_ids: list[int]):
    oracle = PeftOracle(MODEL_DIR)
    before = oracle.logits(prompt_ids, None)
    adapted = oracle.logits(prompt_ids, LEGALESE)
    assert not torch.equal(adapted, before)
    assert torch.equal(oracle.logits(prompt_ids, None), before)
    oracle.unload()
    assert torch.equal(oracle.logits(prompt_ids, None), before)


def test_an_adapter_answers_the_same_alone_and_after_others(oracle: PeftOracle, prompt_ids: list[int]):
    alone = PeftOracle(MODEL_DIR).logits(prompt_ids, LEGALESE)
    for directory in (JSON_ONLY, PIRATE, PIRATE_V2):
        oracle.logits(prompt_ids, directory)
    assert torch.equal(oracle.logits(prompt_ids, LEGALESE), alone)


def test_a_rewritten_directory_is_a_new_adapter(oracle: PeftOracle, prompt_ids: list[int], tmp_path: Path):
    shutil.copytree(PIRATE, tmp_path / "pirate")
    oracle.greedy(prompt_ids, tmp_path / "pirate", NUM_TOKENS)
    shutil.copytree(PIRATE_V2, tmp_path / "pirate", dirs_exist_ok=True)
    rewritten = oracle.greedy(prompt_ids, tmp_path / "pirate", NUM_TOKENS)
    assert rewritten == oracle.greedy(prompt_ids, PIRATE_V2, NUM_TOKENS)


def test_only_the_given_tokens_stop_an_answer(oracle: PeftOracle, prompt_ids: list[int]):
    free = oracle.greedy(prompt_ids, None, 24)
    assert len(free) == 24
    stop = free[3]
    stopped = oracle.greedy(prompt_ids, None, 24, eos_token_ids={stop})
    assert stopped == free[: free.index(stop) + 1]


def test_a_shorter_answer_is_the_start_of_the_longer(prompt_ids: list[int]):
    oracle = PeftOracle(MODEL_DIR)
    short = oracle.greedy(prompt_ids, PIRATE, 4)
    assert oracle.greedy(prompt_ids, PIRATE, 8)[:4] == short
    assert oracle.greedy(prompt_ids, PIRATE, 4) == short
