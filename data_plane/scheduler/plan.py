"""One step as plain data: everything the runner needs and nothing it could look up.

Tensor-parallel ranks receive the same plan, CUDA graphs and tests replay it. The scheduler
makes plans, `data_plane.engine.runner` carries them out and answers with a StepResult.
"""

from dataclasses import dataclass

from data_plane.scheduler.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class Draw:
    """Choose the next token of a sequence from the logits of its chunk's last token."""

    sampling: SamplingParams
    seed: int  # of the sequence: the request's own, or drawn once when none was given
    output_index: int  # how many tokens the sequence has already; randomness is f(seed, output_index)
    allow_eos: bool  # False before min_tokens: eos and stop tokens are masked
    # Prompt and output so far, for penalties; empty when sampling is not penalised.
    prompt_ids: tuple[int, ...] = ()
    output_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive tokens of one sequence to compute in this step.

    Decode is a chunk of one token. Tokens [0, start) of the sequence are in the KV cache already.
    """

    sequence_id: int
    token_ids: tuple[int, ...]
    start: int
    block_table: tuple[int, ...]  # covers start + len(token_ids) tokens
    slot: int | None  # of its adapter; None computes the base model
    draw: Draw | None  # None: the prompt goes on in a later step


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The chunks of one step: decodes first, then prefills; at most one chunk a sequence."""

    chunks: tuple[Chunk, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens computed by the step."""
        return sum(len(chunk.token_ids) for chunk in self.chunks)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token and the natural logarithm of its probability."""

    token_id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class SampledToken:
    """The token drawn for one chunk."""

    sequence_id: int
    token_id: int
    logprob: TokenLogprob | None = None  # when asked for
    top: tuple[TokenLogprob, ...] = ()  # best first


@dataclass(frozen=True, slots=True)
class StepResult:
    """One token for each chunk that has a draw, in the plan's order."""

    tokens: tuple[SampledToken, ...]
