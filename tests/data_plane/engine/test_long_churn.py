"""Churn on the real engine: every answer equals PEFT's for the revision on its receipt, nothing leaks."""

import dataclasses
import random
from collections import Counter
from pathlib import Path

import pytest

from data_plane.engine.assemble import build_engine
from data_plane.engine.events import Failed, Finished
from data_plane.engine.runtime import build_runtime
from data_plane.errors import AdapterRefused, AdapterUnreadable, RequestCancelled
from tests.data_plane.churn import MAX_TOKENS, Churn, FlakyReader, Told, fast_clock, make_names
from tests.data_plane.world import ALL, tiny_config
from tests.oracle import PeftOracle
from tests.tiny import make_adapter, make_model

NUM_SLOTS = 4


@pytest.mark.parametrize(
    ("num_adapters", "num_requests"),
    [(8, 160), pytest.param(64, 5000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])],
)
def test_every_answer_is_pefts_for_its_receipt_and_nothing_leaks(tmp_path, num_adapters, num_requests):
    base = make_model(tmp_path / "base")
    seeds = [
        make_adapter(tmp_path / "wide", base, seed=1, target_modules=ALL),
        make_adapter(tmp_path / "narrow", base, seed=2, rank=3),
        make_adapter(tmp_path / "large", base, seed=3, rank=16, target_modules=ALL),
        make_adapter(tmp_path / "scaled", base, seed=4, rank=12, use_rslora=True),
    ]
    names = make_names(tmp_path / "names", seeds, num_adapters)
    config = tiny_config(
        base,
        tmp_path,
        kv_cache_bytes=200 << 10,  # fewer blocks than the requests want: some are preempted
        max_loras=NUM_SLOTS,
        max_cpu_loras=10,
        max_num_seqs=16,
        max_num_batched_tokens=48,
        max_model_len=64,
    )
    rng = random.Random(0)
    runtime = build_runtime(config)
    flaky = FlakyReader(runtime.reader, random.Random(1))
    engine = build_engine(
        dataclasses.replace(runtime, reader=flaky), config, clock=fast_clock(100), rng=random.Random(2)
    )
    try:
        churn = Churn(engine, names, _prompts(rng), rng)
        churn.run(num_requests)
        engine.check()
        churn.empty()
        engine.check()
        status = engine.status()
    finally:
        engine.close()

    assert (status.running_requests, status.waiting_requests) == (0, 0)
    assert status.free_blocks == runtime.num_blocks
    assert (status.slot_bytes_used, status.cpu_bytes_used, status.adapters) == (0, 0, ())
    _check_answers(churn.told, PeftOracle(base))
    counts = Counter(type(told.end).__name__ for told in churn.told)
    print(f"{num_requests} requests, {churn.num_reloads} reloads, {status.cold_loads} reads: {dict(counts)}")
    assert status.max_adapters_in_step == NUM_SLOTS


def _prompts(rng: random.Random) -> list[tuple[int, ...]]:
    """Prompts that share beginnings, so that a prefix of another adapter's keys would be found."""
    beginning = [rng.randrange(1, 256) for _ in range(20)]
    return [
        tuple(beginning[:shared] + [rng.randrange(1, 256) for _ in range(4)]) for shared in (2, 9, 16, 20)
    ]


def _check_answers(answers: list[Told], oracle: PeftOracle) -> None:
    num_whole = 0
    for number, told in enumerate(answers):
        assert told.end is not None, f"request {number} was never ended"
        if isinstance(told.end, Failed):
            _check_failure(number, told, told.end.error)
        else:
            assert isinstance(told.end, Finished)
            assert told.end.completion_tokens == len(told.tokens) == told.max_tokens
            num_whole += told.pure_tokens >= told.max_tokens
        if told.started:
            assert (told.revision is None) == (told.source is None)
            directory = told.source and _directory_of(told)
            expected = oracle.greedy(list(told.prompt), directory, MAX_TOKENS)
            pure = told.tokens[: told.pure_tokens]
            assert pure == expected[: len(pure)], f"request {number} of {told.revision}"
    assert num_whole > len(answers) // 2, f"only {num_whole} of {len(answers)} answers were checked whole"


def _directory_of(told: Told) -> Path:
    """Where the weights of its receipt are: the revision it asked for, or one reloaded meanwhile."""
    assert told.source is not None
    assert told.revision is not None
    return Path(told.source.uri).parent / str(told.revision.number)


def _check_failure(number: int, told: Told, error: Exception) -> None:
    is_broken = told.source is not None and told.source.revision.number == 3
    allowed: tuple[type[Exception], ...] = (AdapterUnreadable,)
    if is_broken:
        allowed += (AdapterRefused,)
    if told.may_be_cancelled:
        allowed += (RequestCancelled,)
    assert isinstance(error, allowed), f"request {number} of {told.source}: {error!r}"
