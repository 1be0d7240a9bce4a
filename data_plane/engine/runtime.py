"""Puts the tensor side of a worker together: configuration in, everything the engine drives out.

The only place that knows all of model, pools, reader and runner. What it returns is built once
and never changes.
"""

import os
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from data_plane.adapters.layout import AdapterLayout, pages_for
from data_plane.adapters.pool import TorchRankPool
from data_plane.adapters.reader import PeftReader
from data_plane.config import DType, EngineConfig
from data_plane.engine.runner import ModelRunner
from data_plane.engine.sampler import Sampler
from data_plane.kv_cache.pool import KvPool, num_blocks_for
from data_plane.models.base_model import BaseModel
from data_plane.models.build import (
    LoraBinding,
    bind_attention,
    fuse_projections,
    layout_of,
    load_definition,
    load_tokenizer,
)
from data_plane.models.digest import model_digest
from data_plane.models.self_check import self_check
from data_plane.models.step import StepState
from data_plane.models.trace import trace
from kernels.lora.torch_ops import TorchLoraOps


@dataclass(frozen=True, slots=True)
class RuntimeBytes:
    """Memory that is taken at start and stays taken."""

    weights: int
    rank_pool: int
    kv_cache: int


@dataclass(frozen=True, slots=True)
class Runtime:
    """A model ready to compute steps, and what the engine must know about it."""

    runner: ModelRunner
    rank_pool: TorchRankPool
    reader: PeftReader
    tokenizer: Any  # of transformers
    layout: AdapterLayout
    num_blocks: int
    eos_token_ids: tuple[int, ...]
    max_model_len: int
    model_name: str
    base_digest: str
    bytes: RuntimeBytes


def build_runtime(config: EngineConfig) -> Runtime:
    """Load the model and allocate the pools; raise ModelRefused or InvalidRequest when that cannot be."""
    torch.set_num_threads(config.num_threads or os.cpu_count() or 1)
    definition = load_definition(config.model, _dtype(config.dtype))
    self_check(definition.config)
    dtype = definition.dtype
    found = trace(definition)
    layout = layout_of(definition, found)
    state = StepState()

    shapes = [attention.shape for attention in found.attentions]
    num_blocks = num_blocks_for(shapes, dtype, config.block_size, config.kv_cache_bytes)
    kv = KvPool(shapes, num_blocks=num_blocks, block_size=config.block_size, dtype=dtype)
    bind_attention(definition, found, kv, state)

    lora_dtype = _dtype(config.lora_dtype) or dtype
    rank_pool = _rank_pool(config, layout, lora_dtype)
    lora = LoraBinding(rank_pool.modules, TorchLoraOps()) if config.enable_lora else None
    moved_bytes = fuse_projections(definition, found, state, lora)

    eos = _eos_token_ids(definition)
    return Runtime(
        runner=ModelRunner(BaseModel(definition, state), kv, Sampler(eos)),
        rank_pool=rank_pool,
        reader=PeftReader(
            layout=layout,
            roots=config.adapter_roots,
            max_rank=config.max_lora_rank,
            dtype=lora_dtype,
            allow_bin=config.allow_bin,
        ),
        tokenizer=load_tokenizer(config.model),
        layout=layout,
        num_blocks=num_blocks,
        eos_token_ids=eos,
        max_model_len=_max_model_len(config, definition),
        model_name=config.model_name,
        base_digest=model_digest(config.model),
        bytes=RuntimeBytes(
            weights=moved_bytes + sum(parameter.nbytes for parameter in definition.parameters()),
            rank_pool=rank_pool.num_bytes,
            kv_cache=kv.num_bytes,
        ),
    )


def _rank_pool(config: EngineConfig, layout: AdapterLayout, dtype: torch.dtype) -> TorchRankPool:
    """Pages for every slot at the largest rank, and for one more adapter: reloads are staged in it."""
    num_slots = config.max_loras if config.enable_lora else 0
    num_pages = (num_slots + 1) * pages_for(config.max_lora_rank) if config.enable_lora else 0
    return TorchRankPool(layout, num_slots=num_slots, num_pages=num_pages, dtype=dtype)


def _dtype(name: DType) -> torch.dtype | None:
    dtypes = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
    return dtypes.get(name)


def _eos_token_ids(definition: PreTrainedModel) -> tuple[int, ...]:
    generation = definition.generation_config
    eos = generation.eos_token_id if generation else None
    eos = definition.config.eos_token_id if eos is None else eos
    return () if eos is None else tuple(eos) if isinstance(eos, list | tuple) else (eos,)


def _max_model_len(config: EngineConfig, definition: PreTrainedModel) -> int:
    limit = getattr(definition.config.get_text_config(), "max_position_embeddings", None)
    return min(config.max_model_len, limit) if limit else config.max_model_len
