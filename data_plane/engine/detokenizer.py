"""Detokenizer: the tokens of one sequence into text, as they come.

Owns the text that is not out yet; knows nothing of requests. What it gives out is never cut inside
a character and never contains a stop string or a beginning of one: text that might become a stop
string is held back until the next token decides.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

# Tokens of the prompt that the first output token is decoded behind, so that the space in front of
# a word is kept by tokenizers that strip it at the start of a text.
CONTEXT_TOKENS = 4
BROKEN_PREFIX = "Invalid prefix encountered"  # of tokenizers' DecodeStream, on malformed byte runs


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that can go out, and the stop string that ends the sequence, if one does."""

    text: str
    matched_stop: str | None = None


class Detokenizer:
    """Incremental text of one sequence; special tokens are left out."""

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int], stop: tuple[str, ...]) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._stream = DecodeStream(list(prompt_ids[-CONTEXT_TOKENS:]), True)
        self._undecoded: list[int] = []  # tokens that are part of a character
        self._held = ""

    def push(self, token_id: int, *, may_stop: bool = True) -> Piece:
        """Add a token. Without `may_stop` nothing stops here, and nothing is held back for it."""
        text = self._held + self._decode(token_id)
        self._held = ""
        if not self._stop or not may_stop:
            return Piece(text)
        match = self._first_match(text)
        if match is not None:
            position, stop = match
            return Piece(text[:position], stop)
        hold = self._overlap(text)
        self._held = text[len(text) - hold :]
        return Piece(text[: len(text) - hold])

    def flush(self) -> str:
        """The sequence has ended without a stop string: what was held back."""
        text = self._held + self._tokenizer.decode(self._undecoded, skip_special_tokens=True)
        self._held, self._undecoded = "", []
        return text

    def _decode(self, token_id: int) -> str:
        self._undecoded.append(token_id)
        try:
            text = self._stream.step(self._tokenizer, token_id)
        except Exception as error:  # tokenizers raises nothing more exact
            if not str(error).startswith(BROKEN_PREFIX):
                raise
            # The stream cannot go on behind a malformed run of bytes: begin again after it.
            self._stream = DecodeStream([], True)
            text = self._tokenizer.decode(self._undecoded, skip_special_tokens=True)
        if text is None:
            return ""
        self._undecoded.clear()
        return text

    def _first_match(self, text: str) -> tuple[int, str] | None:
        found = [(position, stop) for stop in self._stop if (position := text.find(stop)) >= 0]
        return min(found, default=None)

    def _overlap(self, text: str) -> int:
        """Length of the longest end of the text that is a beginning of a stop string."""
        longest = max(map(len, self._stop)) - 1
        for length in range(min(longest, len(text)), 0, -1):
            end = text[-length:]
            if any(stop.startswith(end) for stop in self._stop):
                return length
        return 0


MakeDetokenizer = Callable[[Sequence[int], tuple[str, ...]], Detokenizer]


def detokenizers(tokenizer: Any) -> MakeDetokenizer:
    """A maker of detokenizers from a `tokenizers.Tokenizer` or a fast tokenizer of transformers."""
    backend = tokenizer if isinstance(tokenizer, Tokenizer) else tokenizer.backend_tokenizer
    return lambda prompt_ids, stop: Detokenizer(backend, prompt_ids, stop)
