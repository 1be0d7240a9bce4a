import copy

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from data_plane.kv_cache.pool import KvPool
from data_plane.models.base_model import BaseModel
from data_plane.models.build import bind_attention, fuse_projections, layout_of, prepared
from data_plane.models.fused_layer import FusedLayer
from data_plane.models.layer_search import fuse_layers
from data_plane.models.pointwise import fuse_pointwise
from data_plane.models.step import StepState
from data_plane.models.trace import trace
from kernels.cpu.native import NativeKernels
from kernels.cpu.paging import PagedChunk, paged_batch
from tests.kernels.cpu.implementations import kernels_at

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 60}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
BLOCK_SIZE, NUM_BLOCKS = 4, 16
LENGTHS = (9, 5)


@pytest.fixture(scope="module")
def kernels() -> NativeKernels:
    return kernels_at("avx512")


def tiny(kind: str, dtype: torch.dtype, **fields: object) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **(SIZES | HEADS | fields))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=dtype)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.train(False).requires_grad_(False)


class Ours:
    """The model as a worker computes it."""

    def __init__(self, model: PreTrainedModel, kernels: NativeKernels) -> None:
        self.definition = prepared(copy.deepcopy(model))
        found, state = trace(self.definition), StepState()
        shapes = [attention.shape for attention in found.attentions]
        self.kv = KvPool(shapes, num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE, dtype=model.dtype)
        bind_attention(self.definition, found, self.kv, state)
        layout = layout_of(self.definition, found)
        fuse_projections(self.definition, found, state, None, kernels)
        fuse_pointwise(self.definition, layout, kernels)
        self.num_fused = fuse_layers(self.definition, found, state, kernels)
        self._base = BaseModel(self.definition, state)

    def logits(self, tokens: list[list[int]], steps: list[list[int]]) -> torch.Tensor:
        """Of the last token of each sequence; `steps`: how many tokens of each are computed at once."""
        for storage in self.kv.layers:
            for cache in storage:
                cache.fill_(float("nan"))
        past = [0] * len(tokens)
        for step in steps:
            chunks = [
                PagedChunk(past[i], length, (2 * i + 1, 2 * i + 8, 2 * i))
                for i, length in enumerate(step)
                if length
            ]
            chunks.sort(key=lambda chunk: chunk.length > 1)
            order = sorted((i for i, n in enumerate(step) if n), key=lambda i: step[i] > 1)
            ids = [token for i in order for token in tokens[i][past[i] : past[i] + step[i]]]
            positions = [p for i in order for p in range(past[i], past[i] + step[i])]
            lengths = [step[i] for i in order]
            out = self._base.forward(
                torch.tensor(ids),
                torch.tensor(positions),
                torch.tensor(lengths).cumsum(0) - 1,
                paged_batch(chunks, BLOCK_SIZE),
                None,
            )
            past = [a + b for a, b in zip(past, step, strict=True)]
        return out[[order.index(i) for i in range(len(tokens))]]


@pytest.mark.parametrize(
    "kind", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "granite", "olmo2"]
)
def test_layers_that_follow_the_conventions_are_computed_whole_and_equal_transformers(
    kind: str, kernels: NativeKernels
):
    window = {"sliding_window": 6} if kind in ("mistral", "gemma2", "gemma3_text") else {}
    extra = {"residual_multiplier": 0.3} if kind == "granite" else {}
    model = tiny(kind, torch.float32, **window, **extra)
    ours = Ours(model, kernels)
    assert ours.num_fused == 2
    tokens = [torch.randint(1, 60, (length,)).tolist() for length in LENGTHS]
    with torch.inference_mode():
        expected = torch.stack([model(torch.tensor([ids])).logits[0, -1] for ids in tokens])
        # A chunk of a prompt beside a whole one, then a decode and a chunk with a past, then decodes.
        found = ours.logits(tokens, [[4, 3], [4, 1], [1, 1]])
    assert (found - expected).abs().max() / expected.abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["gpt2", "stablelm", "phi"])
def test_a_layer_that_is_made_otherwise_stays_the_definitions(kind: str, kernels: NativeKernels):
    fields = {"n_embd": 32, "n_head": 4, "n_layer": 2} if kind == "gpt2" else {}
    assert Ours(tiny(kind, torch.float32, **fields), kernels).num_fused == 0


def test_a_layer_with_other_numbers_is_not_replaced(kernels: NativeKernels):
    model = tiny("llama", torch.float32)
    strange = model.model.layers[1]
    forward = type(strange).forward
    changed = type(
        "Strange", (type(strange),), {"forward": lambda self, *a, **k: forward(self, *a, **k) * 1.001}
    )
    strange.__class__ = changed
    ours = Ours(model, kernels)
    assert [isinstance(layer, FusedLayer) for layer in ours.definition.model.layers] == [True, False]


def test_layers_that_nothing_comes_between_are_one_call(kernels: NativeKernels):
    layers = Ours(tiny("llama", torch.float32), kernels).definition.model.layers
    assert [(layer.first, layer.chain is not None) for layer in layers] == [(True, False), (False, True)]


def test_layers_with_something_between_them_are_computed_one_by_one(kernels: NativeKernels):
    model = tiny("llama", torch.float32)
    model.model.layers[1].register_forward_pre_hook(lambda layer, args: (args[0].clone(), *args[1:]))
    ours = Ours(model, kernels)
    assert all(layer.first and layer.chain is not None for layer in ours.definition.model.layers)


def test_in_bf16_the_layers_are_found_too(kernels: NativeKernels):
    assert Ours(tiny("llama", torch.bfloat16), kernels).num_fused == 2


def test_nothing_is_drawn_from_the_callers_random_numbers(kernels: NativeKernels):
    model = tiny("llama", torch.float32)
    before = torch.get_rng_state()
    Ours(model, kernels)
    assert torch.equal(before, torch.get_rng_state())
