"""Outputs: what a request says, and when each of its sequences ends.

Owns the text and the ends of one request; knows nothing of scheduling. The order of the rules: end
of sequence and stop tokens, stop strings, then length. None of the first three counts before
`min_tokens`.
"""

from dataclasses import dataclass

from data_plane.engine.detokenizer import Detokenizer, MakeDetokenizer
from data_plane.engine.events import Delta, Finished, FinishedChoice, FinishReason, Logprobs
from data_plane.scheduler.plan import SampledToken
from data_plane.scheduler.request import Request, Sequence


@dataclass(frozen=True, slots=True)
class StopRules:
    """What ends a sequence of one request."""

    token_ids: frozenset[int]
    min_tokens: int
    max_len: int  # prompt included


class RequestOutput:
    """The output of one request."""

    def __init__(self, request: Request, make: MakeDetokenizer, eos_token_ids: frozenset[int]) -> None:
        sampling = request.sampling
        eos = frozenset() if sampling.ignore_eos else eos_token_ids
        self._rules = StopRules(eos.union(sampling.stop_token_ids), sampling.min_tokens, request.max_len)
        self._texts: list[Detokenizer] = [make(request.prompt_ids, sampling.stop) for _ in request.sequences]
        self._ends: dict[int, FinishedChoice] = {}

    @property
    def complete(self) -> bool:
        """Whether every sequence has ended."""
        return len(self._ends) == len(self._texts)

    def has_ended(self, sequence: Sequence) -> bool:
        """Whether this sequence has."""
        return sequence.index in self._ends

    def push(self, request: Request, sequence: Sequence, sampled: SampledToken) -> Delta:
        """Add the sequence's newest token: what to say about it."""
        logprobs = () if sampled.logprob is None else (Logprobs(chosen=sampled.logprob, top=sampled.top),)
        return Delta(
            request_id=request.id,
            index=sequence.index,
            text=self._say(sequence, sampled.token_id),
            token_ids=(sampled.token_id,),
            logprobs=logprobs,
        )

    def finished(self, request: Request) -> Finished:
        """The end of the request."""
        return Finished(
            request_id=request.id,
            choices=tuple(self._ends[index] for index in sorted(self._ends)),
            prompt_tokens=len(request.prompt_ids),
            cached_tokens=request.cached_tokens,
            completion_tokens=sum(sequence.num_outputs for sequence in request.sequences),
        )

    def _say(self, sequence: Sequence, token_id: int) -> str:
        text = self._texts[sequence.index]
        rules = self._rules
        may_stop = sequence.num_outputs > rules.min_tokens
        if may_stop and token_id in rules.token_ids:
            self._end(sequence, FinishReason.STOP)
            return text.flush()
        piece = text.push(token_id, may_stop=may_stop)
        if piece.matched_stop is not None:
            self._end(sequence, FinishReason.STOP, piece.matched_stop)
        elif len(sequence.token_ids) >= rules.max_len:
            self._end(sequence, FinishReason.LENGTH)
            return piece.text + text.flush()
        return piece.text

    def _end(self, sequence: Sequence, reason: FinishReason, matched: str | None = None) -> None:
        self._ends[sequence.index] = FinishedChoice(index=sequence.index, reason=reason, matched_stop=matched)
