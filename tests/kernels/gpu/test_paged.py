"""The parts of `make gpu` for attention and the KV write, with the CPU in the GPU's place."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.gpu import attention as gpu_attention
from kernels.gpu.probe import CacheShape
from tests.kernels.gpu import paged
from tests.kernels.gpu.stand_ins import documented_varlen_attn, plain_write_kv
from tests.kernels.triton import step_time

CPU = torch.device("cpu")


class EagerGraph:
    """Runs again what a graph would replay."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.replay = work


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {
        "BLOCK_SIZE": 8,
        "HEAD_DIMS": (16,),
        "NUM_HEADS": 4,
        "NUM_KV_HEADS": 2,
        "LENGTHS": (1, 7, 8, 9, 30),
        "PROMPTS": ((0, 9), (10, 5)),
        "WINDOWS": (None, 5),
        "NUM_WRITTEN": 6,
    }
    for name, value in small.items():
        monkeypatch.setattr(paged, name, value)
    monkeypatch.setattr(gpu_attention, "varlen_attn", documented_varlen_attn)
    monkeypatch.setattr(step_time, "capture", EagerGraph)


def wrong() -> dict[str, str]:
    return {found["check"]: found["wrong"] for found in paged.paged("cpu") if found["wrong"]}


def test_what_does_as_it_should_is_found_right_by_every_check():
    names = [name for name, _ in paged.checks(CPU)]
    assert wrong() == {}
    assert {name.split()[0] for name in names} == {"kv_write", "probe", "attention", "replayed"}
    assert {dtype for dtype in ("bfloat16", "float16") if any(dtype in name for name in names)} == {
        "bfloat16",
        "float16",
    }


def test_a_kv_write_that_swaps_heads_is_found_by_its_own_checks(monkeypatch: pytest.MonkeyPatch):
    def swapped(key: Tensor, value: Tensor, *rest: Tensor) -> None:
        plain_write_kv(key.flip(1), value, *(cache for cache in rest[:2]), rest[2].long())

    monkeypatch.setattr(paged, "write_kv", swapped)
    found = wrong()
    assert set(found) == {name for name, _ in paged.checks(CPU) if name.startswith("kv_write")}
    assert all("elements differ" in reason for reason in found.values())


def test_attention_that_looks_one_too_far_is_found_where_there_is_a_window(monkeypatch: pytest.MonkeyPatch):
    def far(*args: Any, window_size: tuple[int, int], **kwargs: Any) -> Tensor:
        left, right = window_size
        return documented_varlen_attn(*args, window_size=(left + (left >= 0), right), **kwargs)

    monkeypatch.setattr(gpu_attention, "varlen_attn", far)
    assert {name.split()[0] for name in wrong()} == {"probe", "attention"}


def test_a_replay_that_keeps_the_captured_sequences_is_found(monkeypatch: pytest.MonkeyPatch):
    class Stale:
        def __init__(self, work: Callable[[], Tensor]) -> None:
            self._out, self._captured = work(), work().clone()

        def replay(self) -> None:
            self._out.copy_(self._captured)

    monkeypatch.setattr(step_time, "capture", Stale)
    assert {name.split()[0] for name in wrong()} == {"replayed"}


def test_what_a_build_of_torch_lacks_is_wrong_and_the_kv_write_is_checked_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
):
    def absent(*args: Any, **kwargs: Any) -> Tensor:
        raise NotImplementedError("no such kernel")

    monkeypatch.setattr(gpu_attention, "varlen_attn", absent)
    found = wrong()
    assert {name.split()[0] for name in found} == {"probe", "attention", "replayed"}
    assert set(found.values()) == {"NotImplementedError: no such kernel"}


def test_plain_pytorch_never_stands_in_for_the_library():
    shape = CacheShape(2, 16, 8, torch.bfloat16)
    step = paged.made_step(shape, paged.placed([(3, 1)], seed=0), seed=0)
    query, *rest = step.tensors()
    with pytest.raises(AssertionError, match="plain PyTorch"):
        paged.attend(paged.library_attention(), step, [query.float(), *rest], None)
