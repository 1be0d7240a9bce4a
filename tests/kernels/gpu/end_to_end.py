"""A tiny Llama with adapters through the whole engine, on the GPU and on the CPU: the same greedy tokens.

In fp32 by plain PyTorch on the device, and in fp16 by the kernels, with captured graphs and without. A
token that differs in fp16 is excused where the CPU's two best tokens are nearly as likely, and ends the
comparison of its request. Needs more packages than the rest of `make gpu`: see `missing_packages`.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

EMBEDDING, HEAD, RANK = "base_model.model.model.embed_tokens", "base_model.model.lm_head", 8
# Of the engine, beside torch and Triton.
NEEDED = ("transformers", "safetensors", "tokenizers", "pydantic_settings", "structlog")
NUM_TOKENS = 24
CLOSE = 0.1  # difference of log-probabilities that rounding to fp16 may turn over
NAMES = ("plain", "dora", "ends", "own")  # the last two change the embedding and the head
ADAPTERS = (None, *NAMES, None, "plain")
LAYERS, HIDDEN, KV, VOCABULARY = 2, 64, 32, 256


@dataclass(frozen=True, slots=True)
class Answer:
    """One request's tokens, and how far its best token was ahead of the next, each."""

    token_ids: tuple[int, ...]
    margins: tuple[float, ...]


def missing_packages() -> list[str]:
    """What must be installed before the engine can be imported."""
    return [name for name in NEEDED if find_spec(name) is None]


def end_to_end(device: str = "cuda") -> dict[str, Any]:
    """Compare `device` with the CPU; {"skipped": reason} where a package is missing."""
    missing = missing_packages()
    if missing:
        return {"skipped": f"not installed: {', '.join(missing)}"}
    with tempfile.TemporaryDirectory() as root:
        base = make_model(Path(root) / "base")
        for seed, name in enumerate(NAMES):
            make_adapter(Path(root) / name, base, seed=seed, kind=name)
        expected, _ = answers(base, "cpu", dtype="float32", cpu_kernels="torch")
        runs = {
            "float32": {"dtype": "float32"},
            "float16": {"dtype": "float16", "enforce_eager": True},
            "float16_graphs": {"dtype": "float16"},
        }
        found: dict[str, Any] = {}
        for name, settings in runs.items():
            given, paths = answers(base, device, **settings)
            close = 0.0 if settings["dtype"] == "float32" else CLOSE
            found[name] = {**compared(expected, given, close), "paths": paths}
        return found


def is_wrong(found: dict[str, Any]) -> bool:
    """Whether any run gave a token that it must not."""
    return "failed" in found or any(run["wrong"] for run in found.values() if isinstance(run, dict))


def compared(expected: Sequence[Answer], given: Sequence[Answer], close: float) -> dict[str, int]:
    """Tokens that are equal, excused and wrong."""
    counts = {"equal": 0, "excused": 0, "wrong": 0}
    for wanted, got in zip(expected, given, strict=True):
        for token, other, margin in zip(wanted.token_ids, got.token_ids, wanted.margins, strict=True):
            if token == other:
                counts["equal"] += 1
                continue
            # What comes after another token has another prompt.
            counts["excused" if margin < close else "wrong"] += 1
            break
    return counts


def answers(base: Path, device: str, **settings: Any) -> tuple[list[Answer], dict[str, str]]:
    """Greedy tokens of a mixed batch; which paths computed them, from the engine's own log."""
    # Here, because a plain image may lack what the engine needs.
    from structlog.testing import capture_logs

    from data_plane.config import EngineConfig
    from data_plane.engine.local import LocalEngine
    from data_plane.scheduler.sampling import SamplingParams

    config = EngineConfig(
        model=base,
        device=device,
        adapter_roots=(base.parent,),
        max_loras=4,
        max_num_seqs=8,
        max_model_len=300,
        kv_cache_bytes=64 << 20,
        lora_side_bytes=64 << 20,
        **settings,
    )
    sampling = SamplingParams(max_tokens=NUM_TOKENS, temperature=0, ignore_eos=True, logprobs=2)
    # Of several lengths; the last crosses a block of 256 tokens.
    lengths = (1, 3, 9, 17, 5, 40, 250)
    prompts = [[3 + (7 * i + j) % 200 for j in range(length)] for i, length in enumerate(lengths)]
    with capture_logs() as lines, LocalEngine(config) as engine:
        for name in NAMES:
            engine.add_adapter(name, base.parent / name)
        generations = engine.generate(prompts, sampling, adapter=ADAPTERS)
    choices = [generation.choices[0] for generation in generations]
    paths = {
        line["event"]: f"{line.get('path', line.get('captured', ''))}: {line['reason']}"
        for line in lines
        if line["event"].startswith(("gpu_", "device"))
    }
    margins = [tuple(entry.top[0].logprob - entry.top[1].logprob for entry in c.logprobs) for c in choices]
    return [Answer(c.token_ids, margin) for c, margin in zip(choices, margins, strict=True)], paths


def make_model(directory: Path) -> Path:
    """A random Llama whose logits are far apart, and a tokenizer of bytes."""
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    vocabulary = {chr(0x100 + number): number for number in range(VOCABULARY)}
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.4,
        eos_token_id=0,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).to(torch.float32).save_pretrained(directory)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(directory)
    return directory


def make_adapter(directory: Path, base: Path, *, seed: int, kind: str) -> None:
    """Random LoRA of rank 8 on two projections of every layer, in PEFT's format, and what `kind` adds."""
    from safetensors.torch import load_file, save_file

    generator, weights = torch.Generator().manual_seed(seed), load_file(base / "model.safetensors")
    tensors = _of_projections(weights, generator, use_dora=kind == "dora")
    if kind == "ends":
        tensors |= _of_ends(generator)
    elif kind == "own":
        tensors |= _own_matrices(weights, generator)
    ends = ["embed_tokens", "lm_head"]
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": str(base),
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "target_modules": ["q_proj", "v_proj", *(ends if kind == "ends" else [])],
        "modules_to_save": ends if kind == "own" else None,
        "use_dora": kind == "dora",
    }
    directory.mkdir()
    save_file(tensors, directory / "adapter_model.safetensors")
    (directory / "adapter_config.json").write_text(json.dumps(config))


def _of_projections(
    weights: dict[str, Tensor], generator: torch.Generator, *, use_dora: bool
) -> dict[str, Tensor]:
    tensors = {}
    for layer in range(LAYERS):
        for projection, outputs in (("q_proj", HIDDEN), ("v_proj", KV)):
            name = f"model.layers.{layer}.self_attn.{projection}"
            own = f"base_model.model.{name}"
            tensors[f"{own}.lora_A.weight"] = torch.randn(RANK, HIDDEN, generator=generator) / 4
            tensors[f"{own}.lora_B.weight"] = torch.randn(outputs, RANK, generator=generator) / 4
            if use_dora:
                norms = weights[f"{name}.weight"].norm(dim=1)
                noise = 1 + torch.rand(outputs, generator=generator) / 2
                tensors[f"{own}.lora_magnitude_vector"] = norms * noise
    return tensors


def _of_ends(generator: torch.Generator) -> dict[str, Tensor]:
    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) / 4

    return {
        f"{EMBEDDING}.lora_embedding_A": random(RANK, VOCABULARY),
        f"{EMBEDDING}.lora_embedding_B": random(HIDDEN, RANK),
        f"{HEAD}.lora_A.weight": random(RANK, HIDDEN),
        f"{HEAD}.lora_B.weight": random(VOCABULARY, RANK),
    }


def _own_matrices(weights: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    ends = {EMBEDDING: "model.embed_tokens.weight", HEAD: "lm_head.weight"}
    return {
        f"{own}.weight": weights[name] + torch.randn(weights[name].shape, generator=generator) / 4
        for own, name in ends.items()
    }
