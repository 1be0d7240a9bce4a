"""Whether an architecture can be served: decided by trying it at start, not by a list of names.

A tiny random model of the same configuration computes two sequences our way (flattened into one
row, in chunks, through the paged cache and the fused projections) and apart by transformers'
eager attention. When the logits differ, something passes our interface by: a position bias made
elsewhere, a recurrent layer, a projection whose weight is read without being called.
"""

import copy

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from data_plane.errors import ModelRefused
from data_plane.kv_cache.pool import KvPool
from data_plane.models.base_model import BaseModel
from data_plane.models.build import bind_attention, fuse_projections, prepared
from data_plane.models.step import StepState
from data_plane.models.tiny_config import tiny_config
from data_plane.models.trace import trace
from kernels.cpu.paging import PagedChunk, paged_batch

BLOCK_SIZE = 4
BLOCKS = ((5, 0, 3), (1, 4, 2))  # of the two sequences
TOKENS = (tuple(range(3, 14)), tuple(range(40, 46)))
# (sequence, past, length) of each step's chunks: fresh prefills, one with a past, decodes.
STEPS = (((0, 0, 4), (1, 0, 5)), ((1, 5, 1), (0, 4, 6)), ((0, 10, 1),))
TOLERANCE = 1e-3  # relative, in fp32


def self_check(config: PreTrainedConfig) -> None:
    """Raise ModelRefused with the reason when this architecture's numbers would be wrong."""
    name = config.model_type
    try:
        # The caller's random numbers go on as if nothing had been made here.
        with torch.random.fork_rng(devices=[]), torch.inference_mode():
            torch.manual_seed(0)
            model = _random_model(tiny_config(config))
            expected = _apart(model)
            found = _flattened(prepared(copy.deepcopy(model)))
    except ModelRefused:
        raise
    except Exception as error:  # whatever a foreign definition raises is why it cannot be served
        raise ModelRefused(f"{name}: the self-check failed with {type(error).__name__}: {error}") from error
    difference = float((found - expected).abs().max() / expected.abs().max())
    if not difference < TOLERANCE:
        raise ModelRefused(
            f"{name}: flattened and paged, its logits differ from transformers' by {difference:.1e} "
            f"(at most {TOLERANCE:.0e}): it has state or position terms outside of AttentionInterface"
        )


def _random_model(config: PreTrainedConfig) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        config, attn_implementation="eager", dtype=torch.float32
    )
    model.train(False)
    for name, parameter in model.named_parameters():
        # Wider than a fresh model's, so that attention looks somewhere and biases count.
        if parameter.ndim > 1:
            parameter.normal_(std=1.5 / parameter.shape[-1] ** 0.5)
        elif name.endswith("bias"):
            parameter.normal_(std=0.1)
    return model


def _apart(model: PreTrainedModel) -> Tensor:
    """Logits of each sequence's last token by transformers alone, [2, vocab_size]."""
    return torch.stack(
        [model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1] for ids in TOKENS]
    )


def _flattened(model: PreTrainedModel) -> Tensor:
    """The same by our layers, over several steps."""
    found, state = trace(model), StepState()
    shapes = [attention.shape for attention in found.attentions]
    num_blocks = sum(map(len, BLOCKS))
    kv = KvPool(shapes, num_blocks=num_blocks, block_size=BLOCK_SIZE, dtype=torch.float32)
    bind_attention(model, found, kv, state)
    fuse_projections(model, found, state, lora=None)
    base, logits = BaseModel(model, state), {}
    for step in STEPS:
        out = _forward(base, step)
        for (sequence, _, _), row in zip(step, out, strict=True):
            logits[sequence] = row
    return torch.stack([logits[sequence] for sequence in range(len(TOKENS))])


def _forward(base: BaseModel, step: tuple[tuple[int, int, int], ...]) -> Tensor:
    """Logits of the last token of every chunk."""
    spans = [range(past, past + length) for _, past, length in step]
    chunks = [PagedChunk(past, length, BLOCKS[sequence]) for sequence, past, length in step]
    tokens = [
        TOKENS[chunk[0]][position] for chunk, span in zip(step, spans, strict=True) for position in span
    ]
    return base.forward(
        torch.tensor(tokens),
        torch.tensor([position for span in spans for position in span]),
        torch.tensor([length for _, _, length in step]).cumsum(0) - 1,
        paged_batch(chunks, BLOCK_SIZE),
        None,
    )
