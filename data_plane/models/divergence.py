"""Where two computations of the same tokens part: the first module that answers the same input otherwise.

Knows modules and their calls alone, so it can name what is at fault in a definition it has never
seen. Only tensors with a row for every token are compared.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

TOLERANCE = 1e-3  # relative, in fp32


@dataclass(frozen=True, slots=True)
class Call:
    """What went into a module and what came out, [1, num_tokens, ...] each."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


Calls = Mapping[str, Call]


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest expected value; infinite where a number is not finite."""
    difference = (found - expected).abs().max() / expected.abs().max().clamp_min(1e-30)
    return float(difference) if torch.isfinite(difference) else float("inf")


def recorded(model: nn.Module, num_tokens: int, run: Callable[[], object]) -> Calls:
    """The first call of every module in `run`, in the order in which they ended."""
    calls: dict[str, Call] = {}
    with _hooked(model, num_tokens, calls):
        run()
    return calls


def joined(parts: Sequence[Calls]) -> Calls:
    """Calls of sequences that were computed apart as if they had been one row."""
    first, *others = parts
    return {
        name: Call(
            _join([call.inputs, *(other[name].inputs for other in others)]),
            _join([call.outputs, *(other[name].outputs for other in others)]),
        )
        for name, call in first.items()
        if all(name in other for other in others)
    }


def rows_of(calls: Calls, span: range) -> Calls:
    """What went in and came out for some of the tokens."""
    rows = slice(span.start, span.stop)
    return {
        name: Call(
            tuple(tensor[:, rows] for tensor in call.inputs),
            tuple(tensor[:, rows] for tensor in call.outputs),
        )
        for name, call in calls.items()
    }


def first_difference(found: Calls, expected: Calls) -> str | None:
    """The name of the first module with equal inputs and other outputs; None when there is none."""
    # In order of ending: a module comes before those that contain it.
    for name, call in found.items():
        other = expected.get(name)
        if other and _equal(call.inputs, other.inputs) and not _equal(call.outputs, other.outputs):
            return name
    return None


@contextmanager
def _hooked(model: nn.Module, num_tokens: int, calls: dict[str, Call]) -> Iterator[None]:
    def remember(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            outputs = output if isinstance(output, tuple | list) else (output,)
            inputs = _rows((*args, *kwargs.values()), num_tokens)
            calls.setdefault(name, Call(inputs, _rows(outputs, num_tokens)[:1]))

        return hook

    handles = [
        module.register_forward_hook(remember(name), with_kwargs=True)
        for name, module in model.named_modules()
        if name
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _rows(values: Sequence[object], num_tokens: int) -> tuple[Tensor, ...]:
    """Copies, because a definition may go on to change its tensors in place."""
    return tuple(
        value.clone()
        for value in values
        if isinstance(value, Tensor) and value.is_floating_point() and value.shape[:2] == (1, num_tokens)
    )


def _join(parts: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    aligned = [tensors for tensors in zip(*parts, strict=False) if len({t.shape[2:] for t in tensors}) == 1]
    return tuple(torch.cat(tensors, dim=1) for tensors in aligned)


def _equal(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> bool:
    pairs = zip(found, expected, strict=False)
    return all(a.shape == b.shape and relative_difference(a, b) < TOLERANCE for a, b in pairs)
