"""An engine's answers beside PEFT's: the largest error, and the same greedy tokens."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from data_plane.errors import WorkerError
from tests.data_plane.parity.features import Feature
from tests.data_plane.parity.served import NUM_TOKENS, Answer, Served
from tests.oracle import PeftOracle

TOLERANCE = 1e-4  # relative to the largest logit of the row
# An adapter that changes less than this would hide one that is not applied.
EFFECT = 100 * TOLERANCE


@dataclass(frozen=True, slots=True)
class Comparison:
    """One adapter's answer, computed beside one of the base model's."""

    error: float = 0.0  # of the logits of every token drawn
    refusal: WorkerError | None = None


def compare(served: Served, *features: Feature) -> list[Comparison]:
    """Ask the engine and PEFT; the base model's answer must be right whatever becomes of the adapters."""
    adapters = [
        feature.save(served.root / feature.name, served.architecture, served.model) for feature in features
    ]
    base, *adapted = served.answer(*adapters)
    assert isinstance(base, Answer), base
    assert _error(base, PeftOracle(served.model), None) < TOLERANCE
    return [_compared(served, answer, adapter) for answer, adapter in zip(adapted, adapters, strict=True)]


def _compared(served: Served, answer: Answer | WorkerError, adapter: Path) -> Comparison:
    if not isinstance(answer, Answer):
        return Comparison(refusal=answer)
    # One oracle an adapter: PEFT cannot hold all kinds side by side.
    oracle = PeftOracle(served.model)
    assert _distance(answer.logits, _expected(answer, oracle, None)) > EFFECT
    return Comparison(_error(answer, oracle, adapter))


def _error(answer: Answer, oracle: PeftOracle, adapter: Path | None) -> float:
    expected = _expected(answer, oracle, adapter)
    # Equal at every place after the same tokens is equal to the oracle's own greedy answer.
    assert list(answer.tokens) == expected.argmax(dim=-1).tolist()
    return _distance(answer.logits, expected)


def _expected(answer: Answer, oracle: PeftOracle, adapter: Path | None) -> Tensor:
    """The oracle's logits for every token of the answer, given the tokens before it."""
    assert len(answer.tokens) == NUM_TOKENS
    return oracle.logits([*answer.prompt, *answer.tokens[:-1]], adapter)[len(answer.prompt) - 1 :]


def _distance(found: Tensor, expected: Tensor) -> float:
    distances = (found - expected).abs().amax(dim=-1) / expected.abs().amax(dim=-1)
    return float("inf") if bool(torch.isnan(distances).any()) else float(distances.max())
