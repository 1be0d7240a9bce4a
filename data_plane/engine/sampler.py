"""Logits and draws in, one token a draw out, every request with its own parameters in one batch.

    filter:  top_k, then top_p over what is left, then min_p: each keeps the n likeliest tokens
    draw:    the first token (by id) whose cumulative probability exceeds u(seed, output_index)

A draw is a pure function of its logits, seed and output index: the other requests of the batch,
preemption and restarts change nothing. Ties at the border of a filter keep the lowest ids, for
the same reason. A batch of plain greedy draws does nothing but an argmax.
"""

import hashlib
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from data_plane.scheduler.plan import Draw, TokenLogprob

# Most top_p requests keep fewer tokens; only rows that keep more are sorted whole.
FIRST_SORTED = 512


@dataclass(frozen=True, slots=True)
class Choice:
    """A chosen token, with log-probabilities when they were asked for."""

    token_id: int
    logprob: TokenLogprob | None = None
    top: tuple[TokenLogprob, ...] = ()


class Sampler:
    """Stateless but for what ends a sequence in this model."""

    def __init__(self, eos_token_ids: Sequence[int]) -> None:
        self._eos = tuple(eos_token_ids)

    def sample(self, logits: Tensor, draws: Sequence[Draw]) -> list[Choice]:
        """Choose for each row of logits [num_draws, vocab_size]."""
        # argmax over bf16 is four times slower than the conversion and an fp32 argmax.
        logits = logits.float()
        if all(_is_plain_greedy(draw) for draw in draws):
            return [Choice(token) for token in logits.argmax(dim=-1).tolist()]
        reported = _reported(logits, draws)
        adjusted = self._adjust(logits, draws)
        tokens = adjusted.argmax(dim=-1)
        random = [row for row, draw in enumerate(draws) if not draw.sampling.greedy]
        if random:
            index = torch.tensor(random, device=logits.device)
            tokens[index] = _draw(adjusted[index], [draws[row] for row in random])
        chosen = tokens.tolist()
        return [
            Choice(token, *_logprobs(reported.get(row), token, draws[row]))
            for row, token in enumerate(chosen)
        ]

    def _adjust(self, logits: Tensor, draws: Sequence[Draw]) -> Tensor:
        """Penalties and forbidden tokens; the caller's logits stay as they are."""
        rows = [row for row, draw in enumerate(draws) if draw.sampling.penalised or not draw.allow_eos]
        if not rows:
            return logits
        logits = logits.clone()
        for row in rows:
            draw = draws[row]
            if draw.sampling.penalised:
                _penalise(logits[row], draw)
            if not draw.allow_eos:
                forbidden = [*self._eos, *draw.sampling.stop_token_ids]
                logits[row, [token for token in forbidden if token < logits.shape[1]]] = float("-inf")
        return logits


def uniform(seed: int, output_index: int) -> float:
    """A number in [0, 1) that depends on nothing else."""
    key = struct.pack("<QQ", seed % 2**64, output_index)
    digest = hashlib.blake2b(key, digest_size=8).digest()
    return float(int.from_bytes(digest, "little") >> 11) / 2.0**53


def _is_plain_greedy(draw: Draw) -> bool:
    sampling = draw.sampling
    return sampling.greedy and draw.allow_eos and sampling.logprobs is None and not sampling.penalised


def _penalise(logits: Tensor, draw: Draw) -> None:
    """Repetition as in CTRL (arXiv:1909.05858) over all tokens; presence and frequency over the output."""
    sampling = draw.sampling
    device = logits.device
    seen = torch.tensor(sorted({*draw.prompt_ids, *draw.output_ids}), dtype=torch.int64, device=device)
    scores = logits[seen]
    repetition = sampling.repetition_penalty
    logits[seen] = torch.where(scores > 0, scores / repetition, scores * repetition)
    if draw.output_ids:
        occurrences = Counter(draw.output_ids)
        tokens = torch.tensor(list(occurrences), device=device)
        counts = torch.tensor(list(occurrences.values()), device=device)
        logits[tokens] -= sampling.presence_penalty + sampling.frequency_penalty * counts


def _draw(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    device = logits.device
    temperature = torch.tensor([draw.sampling.temperature for draw in draws], device=device)[:, None]
    # The largest becomes 0 first, so that a tiny temperature overflows to -inf only.
    scaled = (logits - logits.amax(dim=-1, keepdim=True)) / temperature
    probabilities = torch.softmax(scaled, dim=-1)
    filtered = [row for row, draw in enumerate(draws) if _filters(draw)]
    if filtered:
        index = torch.tensor(filtered, device=device)
        probabilities[index] = _filter(probabilities[index], [draws[row] for row in filtered])
    cumulative = probabilities.double().cumsum(dim=-1)
    numbers = [uniform(draw.seed, draw.output_index) for draw in draws]
    u = torch.tensor(numbers, dtype=torch.float64, device=device)[:, None]
    tokens = torch.searchsorted(cumulative, u * cumulative[:, -1:], right=True)[:, 0]
    # Rounding may put u on the very end, and logits of NaN put everything there.
    return torch.where(tokens < logits.shape[1], tokens, probabilities.argmax(dim=-1))


def _filters(draw: Draw) -> bool:
    sampling = draw.sampling
    return sampling.top_k > 0 or sampling.top_p < 1 or sampling.min_p > 0


def _filter(probabilities: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Zero all but the tokens that each draw keeps."""
    vocab_size = probabilities.shape[1]
    width = min(vocab_size, max(FIRST_SORTED, *(draw.sampling.top_k for draw in draws), 1))
    num_kept, enough = _num_kept(probabilities.topk(width).values, probabilities, draws)
    if width < vocab_size and not enough.all():
        wide = probabilities.sort(dim=-1, descending=True).values
        width, (num_kept, _) = vocab_size, _num_kept(wide, probabilities, draws)
    values = (
        probabilities.topk(width).values if width < vocab_size else probabilities.sort(descending=True).values
    )
    border = values.gather(1, num_kept[:, None] - 1)
    above, tied = probabilities > border, probabilities == border
    room = num_kept[:, None] - above.sum(dim=-1, keepdim=True)
    return probabilities * (above | (tied & (tied.cumsum(dim=-1) <= room)))


def _num_kept(best: Tensor, probabilities: Tensor, draws: Sequence[Draw]) -> tuple[Tensor, Tensor]:
    """How many of the likeliest tokens each draw keeps, and whether `best` shows enough to know.

    best [num_draws, width]: the largest probabilities, in order.
    """
    width, vocab_size, device = best.shape[1], probabilities.shape[1], best.device
    top_k = torch.tensor([draw.sampling.top_k or vocab_size for draw in draws], device=device)
    top_p = torch.tensor([draw.sampling.top_p for draw in draws], dtype=torch.float64, device=device)
    min_p = torch.tensor([draw.sampling.min_p for draw in draws], device=device)
    cumulative = best.double().cumsum(dim=-1)
    total = torch.where(
        top_k <= width,
        cumulative.gather(1, top_k.clamp(max=width)[:, None] - 1)[:, 0],
        probabilities.double().sum(dim=-1),
    )
    # A token is kept while what is before it has not reached top_p.
    before = cumulative - best
    nucleus = (before < (top_p * total)[:, None]).sum(dim=-1)
    nucleus = torch.where(top_p < 1, nucleus, vocab_size)
    likely = (best >= min_p[:, None] * best[:, :1]).sum(dim=-1)
    likely = torch.where(min_p > 0, likely, vocab_size)
    kept = torch.minimum(torch.minimum(nucleus, likely), top_k)
    # A count that fills `best` may go on beyond it.
    enough = (kept < width) | (top_k <= width)
    return kept.clamp(1, width), enough


def _reported(logits: Tensor, draws: Sequence[Draw]) -> dict[int, Tensor]:
    """Log-probabilities of the model's own distribution, for the rows that report them."""
    rows = [row for row, draw in enumerate(draws) if draw.sampling.logprobs is not None]
    if not rows:
        return {}
    return dict(
        zip(rows, torch.log_softmax(logits[torch.tensor(rows, device=logits.device)], dim=-1), strict=True)
    )


def _logprobs(
    logprobs: Tensor | None, token: int, draw: Draw
) -> tuple[TokenLogprob | None, tuple[TokenLogprob, ...]]:
    if logprobs is None:
        return None, ()
    best = logprobs.topk(draw.sampling.logprobs or 0)
    top = tuple(map(TokenLogprob, best.indices.tolist(), best.values.tolist()))
    return TokenLogprob(token, float(logprobs[token])), top
