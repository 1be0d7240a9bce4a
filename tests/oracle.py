"""The oracle: what transformers and PEFT answer, for tests to compare the worker with.

Nothing of loraplane is imported here. The base model is loaded once; an adapter directory is loaded when it
is first asked for and known by the content of its files, so a directory that is rewritten is a new adapter.
Not for use from several threads.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

MODEL_DIR = Path(__file__).parents[1] / "build" / "models" / "smollm2-135m-instruct"
ADAPTERS_DIR = Path(__file__).parent / "data" / "adapters"

_CONTENT = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(slots=True)
class _Answer:
    """The longest greedy answer known; `is_ended` when it stopped by itself at a stop token."""

    tokens: list[int] = field(default_factory=list)
    is_ended: bool = False


def _content_name(directory: Path) -> str:
    """Name of an adapter by what is in its files."""
    content = hashlib.sha256()
    for name in _CONTENT:
        content.update(hashlib.sha256((directory / name).read_bytes()).digest())
    return f"sha256-{content.hexdigest()[:32]}"


class PeftOracle:
    """Greedy answers and logits of one base model under any PEFT adapter."""

    def __init__(self, model_dir: Path, dtype: torch.dtype = torch.float32) -> None:
        base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=dtype).eval()
        # How to generate is the caller's alone to say: no stop token or penalty of the model's own file.
        base.generation_config = GenerationConfig(pad_token_id=base.config.pad_token_id)
        self._base: PreTrainedModel = base
        self._peft: PeftModel | None = None
        self._answers: dict[tuple[tuple[int, ...], str | None, frozenset[int]], _Answer] = {}

    def greedy(
        self,
        prompt_ids: list[int],
        adapter_dir: Path | None,
        num_tokens: int,
        *,
        eos_token_ids: frozenset[int] | set[int] | None = None,
    ) -> list[int]:
        """At most `num_tokens` greedy tokens after the prompt; a stop token that ended them is the last.

        Without `eos_token_ids` nothing stops them, and there are exactly `num_tokens`.
        """
        stops = frozenset(eos_token_ids or ())
        name = _content_name(adapter_dir) if adapter_dir else None
        # Greedy answers are prefixes of longer ones: the longest asked for serves the shorter.
        known = self._answers.setdefault((tuple(prompt_ids), name, stops), _Answer())
        if len(known.tokens) < num_tokens and not known.is_ended:
            with self._active(adapter_dir, name) as model:
                known.tokens = _generate(model, prompt_ids, num_tokens, stops)
            known.is_ended = known.tokens[-1] in stops
        return known.tokens[:num_tokens]

    def logits(self, prompt_ids: list[int], adapter_dir: Path | None) -> torch.Tensor:
        """Logits of every position of the prompt, `[len(prompt_ids), vocab]`, fp32."""
        name = _content_name(adapter_dir) if adapter_dir else None
        with self._active(adapter_dir, name) as model, torch.inference_mode():
            return model(input_ids=torch.tensor([prompt_ids])).logits[0].float().clone()

    def unload(self) -> None:
        """Take every adapter out of the base model; answers already known stay."""
        if self._peft is not None:
            self._base = self._peft.unload()
            self._peft = None

    @contextmanager
    def _active(self, adapter_dir: Path | None, name: str | None) -> Iterator[PreTrainedModel | PeftModel]:
        """The model with exactly this adapter at work, or with none."""
        if adapter_dir is not None and name is not None:
            yield self._with_adapter(adapter_dir, name)
        elif self._peft is not None:
            with self._peft.disable_adapter():
                yield self._peft
        else:
            yield self._base

    def _with_adapter(self, adapter_dir: Path, name: str) -> PeftModel:
        """PEFT's model, this adapter loaded if it was not, and the only one active."""
        if self._peft is None:
            self._peft = PeftModel.from_pretrained(self._base, str(adapter_dir), adapter_name=name)
        elif name not in self._peft.peft_config:
            self._peft.load_adapter(str(adapter_dir), adapter_name=name)
        self._peft.set_adapter(name)
        return self._peft.eval()


def _generate(
    model: PreTrainedModel | PeftModel, prompt_ids: list[int], num_tokens: int, stops: frozenset[int]
) -> list[int]:
    """transformers' own generation: greedy, one sequence, KV cache."""
    ids = torch.tensor([prompt_ids])
    with torch.inference_mode():
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=num_tokens,
            do_sample=False,
            use_cache=True,
            eos_token_id=sorted(stops) or None,
        )
    return output[0, len(prompt_ids) :].tolist()
