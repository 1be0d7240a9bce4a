"""What every system of a benchmark computes: the same prompts, the same adapters, the same tokens."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer

from tests.oracle import ADAPTERS_DIR, MODEL_DIR

MODEL_NAME = "smollm2-135m-instruct"
ADAPTERS = (("acme", "json-only"), ("acme", "pirate"), ("globex", "legalese"))
QUESTIONS = (
    "Tell me about the ocean.",
    "What is the best way to learn to swim?",
    "Why do cats sleep so much?",
    "How is bread made?",
)


@dataclass(frozen=True, slots=True)
class Stream:
    """One stream of the workload: its prompt and its adapter (None: the base model)."""

    prompt_ids: tuple[int, ...]
    adapter: tuple[str, str] | None

    @property
    def directory(self) -> Path | None:
        """Where the adapter's files are."""
        return None if self.adapter is None else ADAPTERS_DIR.joinpath(*self.adapter)

    @property
    def model(self) -> str:
        """Its name for the control plane."""
        return MODEL_NAME if self.adapter is None else "/".join(self.adapter)


@dataclass(frozen=True, slots=True)
class Workload:
    """Streams that run at once, and the new tokens of each; nothing stops them earlier."""

    streams: tuple[Stream, ...]
    num_tokens: int

    def base_only(self) -> "Workload":
        """The same prompts without adapters."""
        streams = tuple(Stream(stream.prompt_ids, None) for stream in self.streams)
        return Workload(streams, self.num_tokens)


def mixed(num_streams: int, num_tokens: int) -> Workload:
    """Streams on three adapters and the base model in turn."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    prompts = [
        tuple(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
            )
        )
        for question in QUESTIONS
    ]
    # One length, so that no system pays for padding.
    shortest = min(map(len, prompts))
    choices = (*ADAPTERS, None)
    streams = [
        Stream(prompts[(index // len(choices)) % len(prompts)][-shortest:], choices[index % len(choices)])
        for index in range(num_streams)
    ]
    return Workload(tuple(streams), num_tokens)


Arrivals = Sequence[tuple[float, int]]  # (when in seconds, how many tokens), of one stream


def decode_rate(streams: Sequence[Arrivals]) -> float:
    """Tokens a second after every stream has its first: decode alone, without prompt and joining."""
    all_started_s = max(arrivals[0][0] for arrivals in streams)
    end_s = max(arrivals[-1][0] for arrivals in streams)
    tokens = sum(count for arrivals in streams for when_s, count in arrivals if when_s > all_started_s)
    return tokens / (end_s - all_started_s)


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Median of the ratios of paired rounds: drift of the machine's speed hits both of a pair."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))
