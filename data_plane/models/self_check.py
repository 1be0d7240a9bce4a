"""Whether an architecture can be served: decided by trying it at start, not by a list of names.

A small random model of the same configuration computes two sequences our way and by transformers
alone. When the logits differ, something passes our interface by: a position bias made elsewhere, a
recurrent layer, a projection whose weight is read without being called. The refusal names the
first module that is at fault.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from data_plane.errors import ModelRefused
from data_plane.models.build import prepared
from data_plane.models.divergence import (
    TOLERANCE,
    first_difference,
    joined,
    recorded,
    relative_difference,
    rows_of,
)
from data_plane.models.tiny_config import all_heads, tiny_config
from data_plane.models.trace import trace
from data_plane.models.trial import ONE_STEP, STEPS, TOKENS, FlattenedTrial, apart, first_positions
from kernels.cpu.attention import PagedAttention


def self_check(config: PreTrainedConfig, max_model_len: int, attention: PagedAttention | None = None) -> None:
    """Raise ModelRefused with the reason when this architecture's numbers would be wrong.

    Tried with the kernel that will serve; None: plain PyTorch.
    """
    name, first = config.model_type, first_positions(max_model_len)
    with _undisturbed():
        model, expected = _by_transformers(config, max_model_len, first)
        try:
            ours = prepared(copy.deepcopy(model))
            found_trace = trace(ours)
            trial = FlattenedTrial(ours, found_trace, first, attention)
            difference = relative_difference(trial.logits(), expected)
            if difference < TOLERANCE and found_trace.attentions:
                return
            place = _place_of_difference(model, ours, trial, first)
        except Exception as error:  # whatever a foreign definition raises is why it cannot be served
            raise ModelRefused(f"{name}: the self-check failed: {_said(error)}") from error
    nowhere = "" if found_trace.attentions else "; nothing calls transformers' AttentionInterface"
    raise ModelRefused(
        f"{name}: flattened and paged, with sequences of up to {max_model_len} tokens, its logits differ "
        f"from transformers' by {difference:.1e} (at most {TOLERANCE:.0e}){place}{nowhere}"
    )


@contextmanager
def _undisturbed() -> Iterator[None]:
    """The caller's random numbers and threads go on as if nothing had been made here, and nothing is said."""
    num_threads, verbosity = torch.get_num_threads(), logging.get_verbosity()
    # What transformers warns of here is about a model that nobody will use.
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    # Layers this small take longer to share than to compute: 0.44 s with 2 threads, 0.04 s with one.
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]), torch.inference_mode():
            torch.manual_seed(0)
            yield
    finally:
        torch.set_num_threads(num_threads)
        logging.set_verbosity(verbosity)


def _by_transformers(
    config: PreTrainedConfig, max_model_len: int, first: tuple[int, int]
) -> tuple[PreTrainedModel, Tensor]:
    """A small model that transformers can compute, and its logits [2, vocab_size]."""
    try:
        return _computed(tiny_config(config, max_model_len), first)
    except Exception:
        # Its sizes depend on each other in a way that is not known here: keep the heads.
        try:
            return _computed(all_heads(config, max_model_len), first)
        except Exception as error:  # a foreign definition raises what it likes
            raise ModelRefused(
                f"{config.model_type}: transformers cannot compute this configuration: {_said(error)}"
            ) from error


def _computed(config: PreTrainedConfig, first: tuple[int, int]) -> tuple[PreTrainedModel, Tensor]:
    model = _random_model(config)
    return model, torch.stack([apart(model, i, position) for i, position in enumerate(first)])


def _random_model(config: PreTrainedConfig) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        config, attn_implementation="eager", dtype=torch.float32
    )
    model.train(False)
    for name, parameter in model.named_parameters():
        # Wider than a fresh model's, so that attention looks somewhere and biases count.
        if parameter.ndim > 1:
            parameter.normal_(std=1.5 / parameter.shape[-1] ** 0.5)
        elif name.endswith("bias"):
            parameter.normal_(std=0.1)
    return model


def _place_of_difference(
    model: PreTrainedModel, ours: PreTrainedModel, trial: FlattenedTrial, first: tuple[int, int]
) -> str:
    """Which module is the first to answer otherwise, with both sequences whole in one step, then as served.

    In one step it is one that sees more than its own sequence, later one that does not see what came before.
    """
    expected = [
        recorded(model, len(TOKENS[i]), lambda i=i: apart(model, i, first[i]))  # type: ignore[misc]
        for i in range(len(TOKENS))
    ]
    for step in (ONE_STEP, *STEPS):
        num_tokens = sum(chunk.length for chunk in step)
        found = recorded(ours, num_tokens, lambda step=step: trial.forward(step))  # type: ignore[misc]
        name = first_difference(found, joined([rows_of(expected[c.sequence], c.span) for c in step]))
        if name is not None:
            return f", first in {name} ({type(ours.get_submodule(name)).__name__})"
    return ""


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
