"""The end-to-end part of `make gpu`, with the CPU in the GPU's place."""

from pathlib import Path

import pytest

from tests.kernels.gpu import end_to_end
from tests.kernels.gpu.end_to_end import Answer, answers, compared, is_wrong, make_adapter, make_model


def test_the_cpu_gives_its_own_tokens_and_adapters_change_them(tmp_path: Path):
    base = make_model(tmp_path / "base")
    for seed, name in enumerate(end_to_end.NAMES):
        make_adapter(tmp_path / name, base, seed=seed, kind=name)
    first, paths = answers(base, "cpu", dtype="float32", cpu_kernels="torch", block_size=256)
    again, _ = answers(base, "cpu", dtype="float32", cpu_kernels="torch")
    count = compared(first, again, close=0.0)
    assert count == {"equal": len(first) * end_to_end.NUM_TOKENS, "excused": 0, "wrong": 0}
    assert paths == {"device": ": device is cpu"}
    for seed, name in enumerate(("plain", "ends", "own")):
        (tmp_path / name).rename(tmp_path / f"{name}-before")
        make_adapter(tmp_path / name, base, seed=9 + seed, kind=name)
    changed, _ = answers(base, "cpu", dtype="float32", cpu_kernels="torch")
    same = [a.token_ids == b.token_ids for a, b in zip(first, changed, strict=True)]
    assert same == [name in (None, "dora") for name in end_to_end.ADAPTERS]


def test_a_token_that_differs_is_wrong_unless_the_two_best_were_close_and_ends_its_request():
    expected = [Answer((1, 2, 3), (1.0, 0.05, 1.0)), Answer((4, 5, 6), (1.0, 1.0, 1.0))]
    given = [Answer((1, 9, 9), (0.0,) * 3), Answer((4, 5, 9), (0.0,) * 3)]
    assert compared(expected, given, close=0.1) == {"equal": 3, "excused": 1, "wrong": 1}
    assert compared(expected, given, close=0.0) == {"equal": 3, "excused": 0, "wrong": 2}


def test_a_wrong_token_of_any_run_is_a_failure_and_a_skipped_part_is_none():
    assert is_wrong({"float32": {"wrong": 0}, "float16": {"wrong": 1}})
    assert not is_wrong({"float32": {"wrong": 0}})
    assert is_wrong({"failed": "RuntimeError: out of memory"})
    assert not is_wrong({"skipped": "not installed: structlog"})


def test_a_plain_image_without_the_packages_skips_and_names_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(end_to_end, "NEEDED", ("torch", "no_such_package"))
    assert end_to_end.end_to_end("cpu") == {"skipped": "not installed: no_such_package"}
