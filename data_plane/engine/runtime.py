"""Puts the tensor side of a worker together: configuration in, everything the engine drives out.

The only place that knows all of model, pools, reader and runner. What it returns is built once
and never changes.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from data_plane.adapters.buffers import Buffers, new_buffer
from data_plane.adapters.layout import AdapterLayout, pages_for
from data_plane.adapters.packer import LoraPacker
from data_plane.adapters.pool import TorchRankPool
from data_plane.adapters.reader import PeftReader
from data_plane.config import DType, EngineConfig
from data_plane.engine.platform import Platform, choose_platform
from data_plane.engine.remotes import build_remotes
from data_plane.engine.runner import ModelRunner
from data_plane.engine.sampler import Sampler
from data_plane.engine.step_model import StepParts
from data_plane.errors import InvalidRequest
from data_plane.kv_cache.pool import KvPool, num_blocks_for
from data_plane.models.base_model import BaseModel
from data_plane.models.build import (
    LoraBinding,
    bind_attention,
    fuse_projections,
    layout_of,
    load_config,
    load_definition,
    load_tokenizer,
    weights_of,
)
from data_plane.models.digest import model_digest
from data_plane.models.ends import adapt_ends
from data_plane.models.self_check import self_check
from data_plane.models.step import StepState
from data_plane.models.trace import ModelTrace, trace
from kernels.cpu.matrices import TorchCopier
from kernels.cpu.native_matrices import NativeCopier
from kernels.device import Device


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
    landed: PeftReader | None  # reads from the disk cache; None: there is none
    tokenizer: Any  # of transformers
    layout: AdapterLayout
    num_blocks: int
    block_size: int  # tokens
    eos_token_ids: tuple[int, ...]
    max_model_len: int
    model_name: str
    base_digest: str
    bytes: RuntimeBytes


def build_runtime(config: EngineConfig, platform: Platform | None = None) -> Runtime:
    """Load the model and allocate the pools; raise ModelRefused or InvalidRequest when that cannot be.

    `platform` None: the one that the configuration asks for.
    """
    torch.set_num_threads(config.num_threads or os.cpu_count() or 1)
    architecture = load_config(config.model)
    max_model_len = _max_model_len(config, architecture)
    platform = platform or choose_platform(config)
    device = platform.device
    # Before the weights are read: a refusal needs none of them.
    self_check(architecture, max_model_len, platform.tried_attention)
    definition = load_definition(config.model, _dtype(config.dtype))
    dtype = definition.dtype
    found = trace(definition)
    layout = layout_of(definition, found)
    state = StepState()
    definition.to(device.torch)  # type: ignore[arg-type] # transformers types no plain device

    lora_dtype = _dtype(config.lora_dtype) or dtype
    rank_pool = _rank_pool(config, layout, lora_dtype, device)
    lora = None
    if config.enable_lora:
        ops = platform.lora_ops(rank_pool.modules, dtype)
        lora = LoraBinding(rank_pool.modules, rank_pool.slots, ops)
    fused = fuse_projections(definition, found, state, lora, platform.native)
    kv = _kv_pool(config, platform, found, dtype)
    num_blocks = kv.num_blocks - platform.scratch_blocks
    bind_attention(definition, found, kv, state, platform.attention(found, dtype, kv.block_size))
    base = weights_of(definition, layout, fused)
    head_bytes = platform.pack_head(definition, layout.head)
    if lora is not None:
        ends = platform.end_ops(rank_pool.slots, dtype)
        adapt_ends(definition, layout.embedding, layout.head, ends, state)
    # Last, because it moves projections to other names.
    platform.finish(definition, layout, found, state)
    parts = StepParts(BaseModel(definition, state), kv, rank_pool.slots, max_model_len)
    step_model = platform.step_model(parts)

    eos = _eos_token_ids(definition)
    packer = LoraPacker(
        layout=layout,
        base=base,
        max_rank=config.max_lora_rank,
        # One more than there are slots: a reload holds the old and the new side at once.
        max_side_bytes=config.lora_side_bytes // (config.max_loras + 1),
        dtype=lora_dtype,
        buffers=Buffers(config.cpu_cache_bytes, lambda num_bytes: device.staging(new_buffer(num_bytes))),
        staging=device.staging,
        copier=TorchCopier() if platform.native is None else NativeCopier(platform.native),
    )
    reader = PeftReader(
        packer,
        roots=config.readable_roots,
        allow_bin=config.allow_bin,
        remotes=build_remotes(config),
    )
    return Runtime(
        runner=ModelRunner(step_model, kv.block_size, Sampler(eos)),
        rank_pool=rank_pool,
        reader=reader,
        landed=_landed(reader, config.disk_cache_dir),
        tokenizer=load_tokenizer(config.model),
        layout=layout,
        num_blocks=num_blocks,
        block_size=kv.block_size,
        eos_token_ids=eos,
        max_model_len=max_model_len,
        model_name=config.model_name,
        base_digest=model_digest(config.model),
        bytes=RuntimeBytes(
            weights=sum(kept.linear.num_bytes for kept in fused)
            + sum(parameter.nbytes for parameter in definition.parameters())
            + head_bytes,
            rank_pool=rank_pool.num_bytes,
            kv_cache=kv.num_bytes,
        ),
    )


def _landed(reader: PeftReader, disk_cache_dir: Path | None) -> PeftReader | None:
    """A reader of nothing but the disk cache."""
    return replace(reader, roots=(disk_cache_dir,), remotes={}) if disk_cache_dir else None


def _kv_pool(config: EngineConfig, platform: Platform, found: ModelTrace, dtype: torch.dtype) -> KvPool:
    """What its bytes hold, and the blocks that belong to no sequence."""
    shapes = [attention.shape for attention in found.attentions]
    block_size = config.block_size or platform.block_size(found, dtype)
    num_blocks = num_blocks_for(shapes, dtype, block_size, platform.kv_cache_bytes())
    return KvPool(
        shapes,
        num_blocks=num_blocks + platform.scratch_blocks,
        block_size=block_size,
        dtype=dtype,
        device=platform.device.torch,
    )


def _rank_pool(
    config: EngineConfig, layout: AdapterLayout, dtype: torch.dtype, device: Device
) -> TorchRankPool:
    num_slots, num_pages = 0, 0
    if config.enable_lora:
        num_slots, num_pages = config.max_loras, _num_pages(config, layout.page_bytes(dtype.itemsize))
    return TorchRankPool(layout, num_slots=num_slots, num_pages=num_pages, dtype=dtype, device=device)


def _num_pages(config: EngineConfig, page_bytes: int) -> int:
    """Pages for every slot at the largest rank and one more, in which reloads are staged; or as bounded."""
    largest = pages_for(config.max_lora_rank)
    if config.rank_pool_bytes == 0:
        return (config.max_loras + 1) * largest
    num_pages = config.rank_pool_bytes // page_bytes
    if num_pages < 2 * largest:
        raise InvalidRequest(
            "rank_pool_bytes",
            config.rank_pool_bytes,
            f"must be at least {2 * largest * page_bytes}: one adapter of rank {config.max_lora_rank}, and "
            "room to stage a reload of it",
        )
    return num_pages


def _dtype(name: DType) -> torch.dtype | None:
    dtypes = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
    return dtypes.get(name)


def _eos_token_ids(definition: PreTrainedModel) -> tuple[int, ...]:
    generation = definition.generation_config
    eos = generation.eos_token_id if generation else None
    eos = definition.config.eos_token_id if eos is None else eos
    return () if eos is None else tuple(eos) if isinstance(eos, list | tuple) else (eos,)


def _max_model_len(config: EngineConfig, architecture: PreTrainedConfig) -> int:
    limit = getattr(architecture.get_text_config(), "max_position_embeddings", None)
    return min(config.max_model_len, limit) if limit else config.max_model_len
