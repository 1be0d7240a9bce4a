"""Carries out a step: plan in, one token for every chunk that draws out.

Holds the model and the sampler; keeps nothing between steps but the model's KV cache.
It looks nothing up: blocks, slots and draws are in the plan, so the same plan gives the same tokens.
"""

import torch
from torch import Tensor

from data_plane.engine.inputs import step_inputs
from data_plane.engine.sampler import Sampler
from data_plane.engine.step_model import StepModel
from data_plane.scheduler.plan import SampledToken, StepPlan, StepResult


class ModelRunner:
    """Called by the step loop alone, one step at a time."""

    def __init__(self, model: StepModel, block_size: int, sampler: Sampler) -> None:
        self._model, self._block_size, self._sampler = model, block_size, sampler

    def run(self, plan: StepPlan) -> StepResult:
        """Compute every chunk of the plan, at least one, and draw where it says so."""
        inputs = step_inputs(plan, self._block_size)
        with torch.inference_mode():
            logits = self._model.logits(inputs)
            choices = self._sampler.sample(logits, [draw for _, draw in inputs.draws]) if inputs.draws else []
        tokens = tuple(
            SampledToken(sequence_id, choice.token_id, choice.logprob, choice.top)
            for (sequence_id, _), choice in zip(inputs.draws, choices, strict=True)
        )
        return StepResult(tokens)

    def logits(self, plan: StepPlan) -> Tensor:
        """Compute every chunk and return [num_draws, vocab_size], in the plan's order, undrawn."""
        with torch.inference_mode():
            return self._model.logits(step_inputs(plan, self._block_size))
