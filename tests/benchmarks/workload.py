"""What every system of a benchmark computes: the same prompts, the same adapters, the same tokens."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer

from data_plane.adapters.revision import AdapterSource, Revision
from tests.digests import digest_of
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
    adapter: AdapterSource | None

    @property
    def model(self) -> str:
        """The adapter's name for the control plane."""
        if self.adapter is None:
            return MODEL_NAME
        return f"{self.adapter.revision.tenant}/{self.adapter.revision.name}"


@dataclass(frozen=True, slots=True)
class Workload:
    """Streams that run at once, and the new tokens of each; nothing stops them earlier."""

    streams: tuple[Stream, ...]
    num_tokens: int

    @property
    def num_prompt_tokens(self) -> int:
        """Over all streams."""
        return sum(len(stream.prompt_ids) for stream in self.streams)

    def base_only(self) -> "Workload":
        """The same prompts without adapters."""
        streams = tuple(Stream(stream.prompt_ids, None) for stream in self.streams)
        return Workload(streams, self.num_tokens)


def demo_adapter(tenant: str, name: str, *, directory: str = "", number: int = 1) -> AdapterSource:
    """An adapter of the demo, perhaps under another's name."""
    path = ADAPTERS_DIR / tenant / (directory or name)
    return AdapterSource(Revision(tenant, name, number, digest_of(path)), str(path))


def directory_of(adapter: AdapterSource) -> Path:
    """Where its files are."""
    return Path(adapter.uri)


def mixed(num_streams: int, num_tokens: int) -> Workload:
    """Streams on the demo's three adapters and the base model in turn."""
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
    choices = (*(demo_adapter(*adapter) for adapter in ADAPTERS), None)
    streams = [
        Stream(prompts[(index // len(choices)) % len(prompts)][-shortest:], choices[index % len(choices)])
        for index in range(num_streams)
    ]
    return Workload(tuple(streams), num_tokens)


def random_workload(
    num_streams: int,
    *,
    prompt_tokens: int,
    num_tokens: int,
    seed: str,
    adapters: Sequence[AdapterSource] = (),
) -> Workload:
    """Prompts of random tokens, which no other seed has, so that no prefix is known.

    The adapters in turn; none: the base model.
    """
    vocab_size = AutoConfig.from_pretrained(MODEL_DIR).vocab_size
    rng = random.Random(seed)
    streams = [
        Stream(
            tuple(rng.randrange(vocab_size) for _ in range(prompt_tokens)),
            adapters[index % len(adapters)] if adapters else None,
        )
        for index in range(num_streams)
    ]
    return Workload(tuple(streams), num_tokens)
