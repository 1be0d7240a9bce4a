"""The systems that ours is compared with, each with the settings that serve it best.

bf16, static batches of equal prompts (no padding), KV cache, no gradients, the same threads and OpenMP
settings as ours; attention is transformers' default, SDPA, which needs no mask for such batches.
"""

import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from data_plane.adapters.revision import AdapterSource
from tests.benchmarks.run import Run
from tests.benchmarks.workload import Workload, directory_of
from tests.oracle import MODEL_DIR

WEIGHTS = "adapter_model.safetensors"
BASE = "__base__"  # PEFT's name for no adapter


class Transformers:
    """`generate` of transformers on the base model."""

    def __init__(self) -> None:
        self._model = _base_model()

    def run(self, workload: Workload) -> Run:
        """Generate the batch, timing every step."""
        return _generate(self._model, workload)

    def prefill(self, workload: Workload) -> Run:
        """One forward pass over all prompts, into a KV cache, with the last position's logits alone."""
        ids = _prompts(workload)
        began_s = time.monotonic()
        with torch.inference_mode():
            output = self._model(input_ids=ids, use_cache=True, logits_to_keep=1)
            output.logits[:, -1].argmax(dim=-1)
        return Run(began_s, [[(time.monotonic(), len(ids))]], workload.num_prompt_tokens)


class Peft:
    """PEFT with a different adapter in each row (`adapter_names`)."""

    def __init__(self, adapters: Sequence[AdapterSource], *, alike: bool = False) -> None:
        first, *rest = adapters
        # PEFT would keep the adapters in fp32, and cast every input to it and back.
        options = {"autocast_adapter_dtype": False, "low_cpu_mem_usage": True}
        model = PeftModel.from_pretrained(
            _base_model(), directory_of(first), adapter_name=_name(first), **options
        )
        if alike:
            add_alike(model, _name(first), {_name(adapter): directory_of(adapter) for adapter in rest})
            rest = []
        for adapter in rest:
            model.load_adapter(directory_of(adapter), adapter_name=_name(adapter), **options)
        self._model = model.eval()

    def run(self, workload: Workload) -> Run:
        """Generate the batch, timing every step."""
        return _generate(
            self._model, workload, adapter_names=[_name(stream.adapter) for stream in workload.streams]
        )


def add_alike(model: PeftModel, first: str, directories: Mapping[str, Path]) -> None:
    """Give a model further adapters, by name, that differ from its `first` in their numbers alone.

    What load_adapter would make, in seconds: that walks all modules of all adapters for each one, and takes
    minutes for 64.
    """
    files = {name: load_file(directory / WEIGHTS) for name, directory in directories.items()}
    for path, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        for name, tensors in files.items():
            for part in ("lora_A", "lora_B"):
                linear = deepcopy(getattr(layer, part)[first])
                linear.weight.data = tensors[f"{path}.{part}.weight"]
                getattr(layer, part)[name] = linear
            layer.lora_dropout[name] = layer.lora_dropout[first]
            layer.scaling[name] = layer.scaling[first]


class _Clock(StoppingCriteria):
    """Stops nothing; notes when each step ended."""

    def __init__(self, num_streams: int) -> None:
        self.arrivals: list[tuple[float, int]] = []
        self._num_streams = num_streams

    def __call__(self, input_ids: torch.Tensor, scores: object, **kwargs: object) -> torch.Tensor:
        self.arrivals.append((time.monotonic(), self._num_streams))
        return torch.zeros(len(input_ids), dtype=torch.bool)


def _base_model() -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.bfloat16).eval()
    # No stop token or penalty of the model's own file.
    model.generation_config = GenerationConfig(pad_token_id=model.config.pad_token_id)
    return model


def _name(adapter: AdapterSource | None) -> str:
    # PEFT's names are parts of module names, which have no dots.
    return BASE if adapter is None else f"{adapter.revision.tenant}-{adapter.revision.name}"


def _prompts(workload: Workload) -> torch.Tensor:
    return torch.tensor([stream.prompt_ids for stream in workload.streams])


def _generate(model: PreTrainedModel | PeftModel, workload: Workload, **options: object) -> Run:
    began_s = time.monotonic()
    ids = _prompts(workload)
    clock = _Clock(len(ids))
    with torch.inference_mode():
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            min_new_tokens=workload.num_tokens,
            max_new_tokens=workload.num_tokens,
            do_sample=False,
            use_cache=True,
            eos_token_id=None,
            stopping_criteria=StoppingCriteriaList([clock]),
            **options,
        )
    return Run(began_s, [clock.arrivals], workload.num_prompt_tokens)
