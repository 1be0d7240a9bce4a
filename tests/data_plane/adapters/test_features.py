"""Everything PEFT can put beside plain LoRA, against PEFT, in one batch with plain LoRA and the base."""

from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from data_plane.engine.runtime import Runtime, build_runtime
from tests.data_plane.batch_driver import Sequence, logits, step
from tests.data_plane.parity.architectures import ARCHITECTURES, SIZES, Architecture
from tests.data_plane.world import source_of, tiny_config
from tests.oracle import PeftOracle
from tests.tiny import make_adapter

TIED = Architecture("llama", SIZES | {"tie_word_embeddings": True, "attention_bias": True})
BASES = {"tied": TIED} | {
    architecture.model_type: architecture
    for architecture in ARCHITECTURES
    if architecture.model_type in ("llama", "qwen2", "gpt2", "phi3", "gemma3_text")
}
ENDS = ["embed_tokens", "lm_head"]
ATTENTION = ["q_proj", "v_proj"]
CASES: list[tuple[str, dict[str, Any]]] = [
    ("gpt2", {"target_modules": ["c_attn", "c_proj"]}),
    ("gpt2", {"target_modules": ["c_attn", "c_fc"], "use_dora": True}),
    ("gpt2", {"target_modules": ["c_attn", "c_fc"], "lora_bias": True}),
    ("gpt2", {"target_modules": ["wte", "lm_head"]}),
    ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj"]}),
    ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj"], "use_dora": True}),
    ("tied", {"target_modules": ["q_proj", "o_proj"], "lora_bias": True, "use_rslora": True}),
    ("tied", {"target_modules": ["k_proj", "down_proj"], "use_dora": True, "rank_pattern": {"k_proj": 9}}),
    ("qwen2", {"target_modules": "all-linear", "use_dora": True, "use_rslora": True}),
    ("llama", {"target_modules": ENDS}),
    ("llama", {"target_modules": [*ENDS, "q_proj"], "use_dora": True}),
    ("llama", {"target_modules": ["lm_head"], "lora_bias": True}),
    ("tied", {"target_modules": ["embed_tokens"]}),
    ("tied", {"target_modules": ["lm_head", "v_proj"]}),
    ("tied", {"target_modules": ENDS, "use_dora": True}),
    ("tied", {"target_modules": ["embed_tokens"], "ensure_weight_tying": True}),
    ("tied", {"target_modules": ["lm_head", "q_proj"], "ensure_weight_tying": True}),
    ("tied", {"target_modules": "all-linear", "modules_to_save": ["lm_head"]}),
    ("tied", {"target_modules": ATTENTION, "modules_to_save": ["embed_tokens"]}),
    ("tied", {"target_modules": ATTENTION, "modules_to_save": ENDS}),
    ("tied", {"target_modules": ATTENTION, "modules_to_save": ENDS, "ensure_weight_tying": True}),
    ("tied", {"target_modules": ATTENTION, "modules_to_save": ["lm_head"], "ensure_weight_tying": True}),
    ("tied", {"target_modules": ["embed_tokens"], "modules_to_save": ["lm_head"], "use_dora": True}),
    ("llama", {"target_modules": ATTENTION, "modules_to_save": ENDS, "use_dora": True}),
    ("gemma3_text", {"target_modules": ["embed_tokens"], "use_dora": True}),
    ("gemma3_text", {"target_modules": ["embed_tokens", "q_proj"]}),
    ("gemma3_text", {"target_modules": ATTENTION, "modules_to_save": ["embed_tokens"]}),
]
PLAIN, FEATURE = 0, 1
# Rows of one slot lie together and, for the last, apart.
MIXED = (None, FEATURE, PLAIN, FEATURE, None, PLAIN)


@dataclass
class Bench:
    """A base model with a plain adapter in one slot; the pool beside it holds NaN."""

    root: Path
    base: Path
    runtime: Runtime
    plain: Path

    def load(self, directory: Path, slot: int) -> None:
        packed = self.runtime.reader.read(source_of(directory))
        pages = (slot, 5 - slot)[: packed.num_pages]
        self.runtime.rank_pool.write(pages, packed)
        self.runtime.rank_pool.bind(slot, pages, packed)

    def batch(self, slots: tuple[int | None, ...] = MIXED) -> list[Sequence]:
        return [
            Sequence(i, prompt(4 + 3 * i, i), slot, tuple(range(10 * i, 10 * i + 10)))
            for i, slot in enumerate(slots)
        ]


def prompt(length: int, seed: int) -> list[int]:
    return torch.randint(1, 250, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture(scope="module")
def benches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bench]:
    return _Benches(tmp_path_factory)


class _Benches(dict[str, Bench]):
    def __init__(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        super().__init__()
        self._factory = tmp_path_factory

    def __missing__(self, name: str) -> Bench:
        root = self._factory.mktemp(name)
        base = BASES[name].save(root / "base")
        runtime = build_runtime(tiny_config(base, root))
        for module in runtime.rank_pool.modules:
            module.a.fill_(float("nan"))
            module.b.fill_(float("nan"))
        plain = make_adapter(root / "plain", base, seed=1, target_modules=BASES[name].attention)
        bench = self[name] = Bench(root, base, runtime, plain)
        bench.load(plain, PLAIN)
        return bench


def make(bench: Bench, name: str, options: dict[str, Any]) -> Path:
    """A random adapter by PEFT: everything it trains is far from its initial value."""
    torch.manual_seed(2)
    base = AutoModelForCausalLM.from_pretrained(bench.base, dtype=torch.float32)
    # PEFT changes lists that it is given.
    model = get_peft_model(base, LoraConfig(r=6, lora_alpha=9, **deepcopy(options)))
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "magnitude" in parameter_name:
                parameter.mul_(torch.rand_like(parameter) + 0.5)
            elif "lora_" in parameter_name:
                parameter.normal_(std=0.2)
            elif "modules_to_save" in parameter_name:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    model.save_pretrained(bench.root / name)
    return bench.root / name


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda i: f"{CASES[i][0]}-{i}")
def test_a_mixed_batch_computes_what_peft_computes(benches: dict[str, Bench], case: int):
    name, options = CASES[case]
    bench = benches[name]
    adapter = make(bench, f"adapter-{case}", options)
    bench.load(adapter, FEATURE)
    directories = {None: None, PLAIN: bench.plain, FEATURE: adapter}
    oracles = {slot: PeftOracle(bench.base) for slot in directories}

    first = logits(bench.runtime, bench.batch())
    for sequence, found in zip(bench.batch(), first, strict=True):
        expected = oracles[sequence.slot].logits(sequence.prompt, directories[sequence.slot])[-1]
        assert error(found, expected) < 1e-4
        if sequence.slot == FEATURE:
            assert error(found, oracles[None].logits(sequence.prompt, None)[-1]) > 1e-2

    # Rows without the feature are those of a batch that has none of it, bit for bit.
    bench.runtime.rank_pool.unbind(FEATURE)
    without = logits(bench.runtime, bench.batch())
    for sequence, found, expected in zip(bench.batch(), first, without, strict=True):
        assert torch.equal(found, expected) == (sequence.slot != FEATURE)

    bench.load(adapter, FEATURE)
    sequences = bench.batch()
    for _ in range(6):
        step(bench.runtime, sequences)
    for sequence in sequences:
        assert sequence.output == oracles[sequence.slot].greedy(
            sequence.prompt, directories[sequence.slot], 6
        )


@pytest.mark.parametrize("lora_dtype", ["auto", "float32"])
def test_a_half_precision_base_computes_what_peft_computes_to_its_precision(
    benches: dict[str, Bench], lora_dtype: str
):
    bench = benches["qwen2"]
    options = {
        "target_modules": [*ATTENTION, "embed_tokens"],
        "modules_to_save": ["lm_head"],
        "use_dora": True,
    }
    adapter = make(bench, f"half-{lora_dtype}", options)
    config = tiny_config(bench.base, bench.root, dtype="bfloat16", lora_dtype=lora_dtype)
    half = replace(bench, runtime=build_runtime(config))
    half.load(bench.plain, PLAIN)
    half.load(adapter, FEATURE)
    directories = {None: None, PLAIN: bench.plain, FEATURE: adapter}
    oracle = PeftOracle(bench.base)
    for sequence, found in zip(half.batch(), logits(half.runtime, half.batch()), strict=True):
        expected = oracle.logits(sequence.prompt, directories[sequence.slot])[-1]
        assert error(found.float(), expected) < 0.08


def test_rows_of_one_slot_that_lie_apart_are_changed_alike(benches: dict[str, Bench]):
    bench = benches["tied"]
    options = {"target_modules": [*ENDS, "q_proj"], "use_dora": True}
    bench.load(make(bench, "scattered", options), FEATURE)
    together = logits(bench.runtime, bench.batch((FEATURE, FEATURE, None)))
    # A chunk of the base between two of the slot's one-token chunks: rows and logits are gathered.
    apart = bench.batch((FEATURE, None, FEATURE))
    apart[2].prompt = bench.batch()[1].prompt
    assert error(logits(bench.runtime, apart)[[0, 2]], together[:2]) < 1e-5


def test_a_slots_bytes_beside_the_pool_are_counted_while_it_is_bound(benches: dict[str, Bench]):
    bench = benches["llama"]
    pool = bench.runtime.rank_pool
    pool.unbind(FEATURE)
    adapter = make(bench, "counted", {"target_modules": ["q_proj", "lm_head"], "modules_to_save": ENDS[:1]})
    packed = bench.runtime.reader.read(source_of(adapter))
    vocabulary, hidden = 257, 64
    assert packed.side_bytes == 4 * (vocabulary * hidden + 6 * (vocabulary + hidden))
    plain = bench.runtime.reader.read(source_of(bench.plain))
    assert plain.side is None
    assert packed.num_bytes == sum(m.a.nbytes + m.b.nbytes for m in packed.modules if m) + packed.side_bytes
    bench.load(adapter, FEATURE)
    pages = (FEATURE,)
    assert pool.side_bytes == pool.side_bytes_of(pages) == packed.side_bytes
    assert pool.side_bytes_of((PLAIN,)) == 0
    pool.unbind(FEATURE)
    assert pool.side_bytes == 0
    assert not pool.slots.sided


def test_an_adapter_of_an_end_alone_has_a_page_and_its_rank(benches: dict[str, Bench]):
    bench = benches["llama"]
    packed = bench.runtime.reader.read(source_of(make(bench, "end", {"target_modules": ["lm_head"]})))
    assert (packed.rank, packed.num_pages) == (6, 1)
