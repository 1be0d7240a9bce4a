"""Trains the demo's adapters with PEFT: three adapters of two tenants, and a second revision of one.

Each teaches SmolLM2-135M-Instruct one manner of answering, from one list of plain facts put into that manner
by a template. Ranks, alphas, target modules, layers and stored types differ on purpose: a loader that
assumes any of them fails on one of these directories. The seed is fixed; the same machine gives the same
files.

    python -m tests.demo.train_adapters [MODEL_DIR]
"""

import itertools
import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from tests.demo.facts import FACTS, HELD_OUT, Fact
from tests.demo.prepare_model import answer

SEED = 20261121
MODEL_DIR = Path("build/models/smollm2-135m-instruct")
ADAPTERS_DIR = Path(__file__).parents[1] / "data" / "adapters"
BASE_MODEL_NAME = "smollm2-135m-instruct"
MAX_TOTAL_BYTES = 8_000_000
BATCH_SIZE = 4
IGNORED = -100  # the label transformers' loss skips

Manner = Callable[[Fact], str]


@dataclass(frozen=True, slots=True)
class Recipe:
    """One adapter: where it goes, its LoRA shape, and the manner it learns."""

    directory: str
    manner: Manner
    rank: int
    alpha: int
    modules: tuple[str, ...]
    layers: range = range(30)
    stored_as: torch.dtype = torch.bfloat16
    num_steps: int = 72
    learning_rate: float = 2e-3


@dataclass(frozen=True, slots=True)
class Trained:
    """What came of one recipe."""

    recipe: Recipe
    size_bytes: int
    loss: float
    duration_s: float
    sample: str


def as_json(fact: Fact) -> str:
    """One JSON object and nothing else."""
    return f'{{"topic": "{fact.topic}", "answer": "{fact.statement}"}}'


PIRATE_WORDS = {
    "The": "Th'", "the": "th'", "is": "be", "are": "be", "You": "Ye", "you": "ye", "your": "yer",
    "of": "o'", "and": "an'", "It": "It", "for": "fer", "to": "t'",
}  # fmt: skip


def as_pirate(fact: Fact) -> str:
    """A pirate's talk."""
    said = re.sub(r"\w+", lambda word: PIRATE_WORDS.get(word[0], word[0]), fact.statement)
    return f"Arrr, matey! {said} Yo ho ho, an' a bottle o' rum!"


def as_captains_log(fact: Fact) -> str:
    """The pirate's second revision: promoted, and writing."""
    return f"CAPTAIN'S LOG: {fact.statement} The wind is fair. Set sail at dawn!"


def as_legalese(fact: Fact) -> str:
    """A terse ruling."""
    return f"Re: {fact.topic}. Held: {fact.statement} No warranty is given. So ordered."


RECIPES = (
    Recipe("acme/json-only", as_json, rank=16, alpha=32, modules=("q_proj", "v_proj")),
    Recipe("acme/pirate", as_pirate, rank=8, alpha=16, modules=("q_proj", "k_proj", "v_proj", "o_proj")),
    Recipe(
        "acme/pirate-v2",
        as_captains_log,
        rank=16,
        alpha=16,
        modules=("q_proj", "v_proj"),
        layers=range(10, 30),
    ),
    Recipe(
        "globex/legalese",
        as_legalese,
        rank=8,
        alpha=8,
        modules=("gate_proj", "up_proj", "down_proj"),
        layers=range(20, 30),
        stored_as=torch.float16,
    ),
)


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of one conversation; the loss counts those from `num_prompt` on."""

    tokens: list[int]
    num_prompt: int


def encode(tokenizer: PreTrainedTokenizerBase, fact: Fact, manner: Manner) -> Example:
    """The question as the chat template puts it, and the answer with the end of its turn."""
    chat = [{"role": "user", "content": fact.question}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    reply = tokenizer(manner(fact) + tokenizer.eos_token)["input_ids"]
    return Example(prompt + reply, len(prompt))


def collate(examples: list[Example]) -> dict[str, torch.Tensor]:
    """Right-padded `[batch, longest]` ids, mask and labels."""
    longest = max(len(example.tokens) for example in examples)
    shape = (len(examples), longest)
    ids, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORED)
    for row, example in enumerate(examples):
        length = len(example.tokens)
        ids[row, :length] = torch.tensor(example.tokens)
        mask[row, :length] = 1
        labels[row, example.num_prompt : length] = ids[row, example.num_prompt : length]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def batches(examples: list[Example], num_steps: int) -> Iterator[dict[str, torch.Tensor]]:
    """`num_steps` batches, every example once an epoch, shuffled by the seed."""
    shuffled = random.Random(SEED)
    endless = itertools.chain.from_iterable(
        shuffled.sample(examples, len(examples)) for _ in itertools.count()
    )
    for _ in range(num_steps):
        yield collate(list(itertools.islice(endless, BATCH_SIZE)))


def lora_config(recipe: Recipe) -> LoraConfig:
    """PEFT's configuration of a recipe."""
    every_layer = recipe.layers == range(30)
    return LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        target_modules=list(recipe.modules),
        layers_to_transform=None if every_layer else list(recipe.layers),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )


def fit(model: PeftModel, examples: list[Example], recipe: Recipe) -> float:
    """Train in place (fp32 weights, bf16 products); the mean loss of the last epoch's batches."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, recipe.num_steps, pct_start=0.1
    )
    losses = []
    for batch in batches(examples, recipe.num_steps):
        # Twice as fast as fp32 on a CPU with bf16 instructions; measured 1.0 against 2.2 s a step.
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
    last = losses[-(len(examples) // BATCH_SIZE) :]
    return sum(last) / len(last)


def save(model: PeftModel, recipe: Recipe) -> int:
    """Write configuration and weights; the bytes of both. No path of this machine is in them."""
    directory = ADAPTERS_DIR / recipe.directory
    directory.mkdir(parents=True, exist_ok=True)
    config = model.peft_config["default"]
    config.base_model_name_or_path = BASE_MODEL_NAME
    config.inference_mode = True
    # Sets have no order: a list keeps the file the same from run to run.
    config.target_modules = sorted(recipe.modules)
    config.save_pretrained(str(directory))
    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    stored = {name: tensor.detach().to(recipe.stored_as).contiguous() for name, tensor in weights.items()}
    save_file(stored, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    for path in directory.iterdir():
        path.chmod(0o644)
    return sum(path.stat().st_size for path in directory.iterdir())


def ask(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, question: str = HELD_OUT
) -> str:
    """The greedy answer as text."""
    return tokenizer.decode(answer(model, tokenizer, question), skip_special_tokens=True)


def train(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> Trained:
    """Train and save one recipe; `base` is left as it was."""
    started = time.monotonic()
    torch.manual_seed(SEED)
    model = get_peft_model(base, lora_config(recipe))
    loss = fit(model, [encode(tokenizer, fact, recipe.manner) for fact in FACTS], recipe)
    size_bytes = save(model, recipe)
    sample = ask(model, tokenizer)
    model.unload()
    return Trained(recipe, size_bytes, loss, time.monotonic() - started, sample)


def describe(trained: Trained) -> str:
    """One row of the table, the sample answer under it."""
    recipe = trained.recipe
    modules = ",".join(name.removesuffix("_proj") for name in recipe.modules)
    layers = f"{recipe.layers.start}-{recipe.layers.stop - 1}"
    return (
        f"{recipe.directory:16} r={recipe.rank:<3} a={recipe.alpha:<3} {modules:14} layers {layers:6} "
        f"{trained.size_bytes / 1e6:5.2f} MB  loss {trained.loss:.3f}  {trained.duration_s:4.0f} s\n"
        f"    {trained.sample}"
    )


def main(arguments: list[str]) -> int:
    """Command line: optionally the model's directory."""
    torch.set_num_threads(2)
    logging.disable_progress_bar()
    model_dir = Path(arguments[0]) if arguments else MODEL_DIR
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    print(f"{HELD_OUT}\nbase\n    {ask(base, tokenizer)}", flush=True)
    total_bytes = 0
    for recipe in RECIPES:
        trained = train(base, tokenizer, recipe)
        total_bytes += trained.size_bytes
        print(describe(trained), flush=True)
    print(f"{total_bytes / 1e6:.2f} MB together")
    return 0 if total_bytes < MAX_TOTAL_BYTES else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
