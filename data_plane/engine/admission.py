"""Admission: may a request enter the engine, and how long may it get.

Knows the model's and the cache's limits; keeps no state. What it lets in can always end: alone in the
engine it has blocks enough for its longest output.
"""

from dataclasses import dataclass

from data_plane.engine.events import GenerationRequest
from data_plane.errors import AdapterRefused, InvalidRequest


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """What bounds a request."""

    max_model_len: int
    max_sequences: int
    num_blocks: int
    block_size: int
    vocab_size: int
    serves_adapters: bool


def admitted_len(request: GenerationRequest, limits: AdmissionLimits) -> int:
    """Longest length, prompt included, of the request's sequences; raise WorkerError to refuse it."""
    _check(request, limits)
    num_prompt, n = len(request.prompt_ids), request.sampling.n
    # The n sequences share the full blocks of the prompt, and have the rest each for itself.
    num_shared = (num_prompt - 1) // limits.block_size
    most_blocks = (limits.num_blocks - num_shared) // n + num_shared
    if num_prompt >= most_blocks * limits.block_size:
        rule = f"tokens for {n} sequences do not fit into {limits.num_blocks} KV blocks"
        raise InvalidRequest("prompt", num_prompt, rule)
    return min(
        limits.max_model_len, num_prompt + request.sampling.max_tokens, most_blocks * limits.block_size
    )


def _check(request: GenerationRequest, limits: AdmissionLimits) -> None:
    num_prompt, n = len(request.prompt_ids), request.sampling.n
    if num_prompt == 0:
        raise InvalidRequest("prompt", "", "has no tokens")
    if num_prompt >= limits.max_model_len:
        rule = f"tokens leave no room for output: the model takes {limits.max_model_len}"
        raise InvalidRequest("prompt", num_prompt, rule)
    # One bad id would fail the whole step that computes it.
    for token_id in (min(request.prompt_ids), max(request.prompt_ids)):
        if not 0 <= token_id < limits.vocab_size:
            raise InvalidRequest("prompt.token_ids", token_id, f"must be in [0, {limits.vocab_size})")
    if n > limits.max_sequences:
        rule = f"must be at most max_num_seqs ({limits.max_sequences})"
        raise InvalidRequest("sampling.n", n, rule)
    if request.adapter is not None and not limits.serves_adapters:
        raise AdapterRefused(f"adapter {request.adapter.revision.name}: this worker serves no adapters")
