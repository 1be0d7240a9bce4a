"""Assembles an engine: configuration and tensor side in, a step loop out."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from data_plane.adapters.cpu_cache import CpuCache
from data_plane.adapters.disk_cache import DiskCache
from data_plane.adapters.lifecycle import AdapterManager
from data_plane.adapters.load_queue import LoadQueue, ThreadLoadQueue
from data_plane.adapters.loader import AdapterLoader, DiskLoader, Loaded, SourceLoader
from data_plane.adapters.pages import PageAllocator
from data_plane.adapters.shares import check_room
from data_plane.adapters.slots import Slots
from data_plane.adapters.types import AdapterReader, RankPool
from data_plane.config import EngineConfig
from data_plane.engine.admission import AdmissionLimits
from data_plane.engine.detokenizer import detokenizers
from data_plane.engine.engine import Engine, EngineSettings, StepRunner
from data_plane.engine.intake import IntakeLimits
from data_plane.kv_cache.tables import BlockTables
from data_plane.scheduler.fairness import VirtualCounters
from data_plane.scheduler.lanes import Lanes
from data_plane.scheduler.scheduler import Scheduler, StepLimits
from data_plane.scheduler.turns import TURN_STEPS, SlotTurns

ROWS_PER_PAGE = 8


class Tokenizer(Protocol):
    """A `tokenizers.Tokenizer`, or a fast tokenizer of transformers, as far as it is used here."""

    def get_vocab(self) -> dict[str, int]:
        """Token ids by token."""


class TensorSide(Protocol):
    """What an engine needs of a runtime; see data_plane.engine.runtime."""

    @property
    def runner(self) -> StepRunner:
        """Computes steps."""

    @property
    def rank_pool(self) -> RankPool:
        """The tensors of all slots."""

    @property
    def reader(self) -> AdapterReader:
        """Reads adapters."""

    @property
    def landed(self) -> AdapterReader | None:
        """Reads adapters inside the disk cache; needed when there is one."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Of the base model."""

    @property
    def num_blocks(self) -> int:
        """KV blocks."""

    @property
    def block_size(self) -> int:
        """Tokens in a KV block."""

    @property
    def eos_token_ids(self) -> Sequence[int]:
        """End of sequence."""

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus output."""

    @property
    def base_digest(self) -> str:
        """Digest of the base model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginePolicy:
    """Choices that have a sound default."""

    turn_steps: int = TURN_STEPS
    tenant_weight: Callable[[str], float] = lambda tenant: 1.0


@dataclass(frozen=True, slots=True)
class LoadQueues:
    """Where adapters are read, and where they are copied into the rank pool."""

    reads: LoadQueue[Loaded]
    copies: LoadQueue[None]


def load_threads(num_threads: int) -> LoadQueues:
    """Queues on threads. Copies have one of their own, so that a slow source never delays them."""
    return LoadQueues(
        ThreadLoadQueue(num_threads, name="adapter-read", prepare=_compute_alone),
        ThreadLoadQueue(1, name="adapter-copy", prepare=_compute_alone),
    )


def _compute_alone() -> None:
    """This thread computes without helpers: a team of its own would put the step loop's to sleep."""
    torch.set_num_threads(1)


def build_engine(
    tensors: TensorSide,
    config: EngineConfig,
    *,
    policy: EnginePolicy | None = None,
    queues: LoadQueues | None = None,
    clock: Callable[[], float] = time.monotonic,
    rng: random.Random | None = None,
) -> Engine:
    """An engine that drives this tensor side."""
    policy = policy or EnginePolicy()
    adapters = _adapters(tensors, config, queues or load_threads(config.load_threads), clock)
    tables = BlockTables(tensors.num_blocks, tensors.block_size, share_prefixes=config.enable_prefix_caching)
    counters = VirtualCounters(policy.tenant_weight)
    lanes = Lanes(counters)
    scheduler = Scheduler(
        tables=tables,
        adapters=adapters,
        lanes=lanes,
        turns=SlotTurns(adapters, lanes, counters, turn_steps=policy.turn_steps),
        counters=counters,
        limits=StepLimits(config.max_num_batched_tokens, config.max_num_seqs),
        base_digest=tensors.base_digest,
    )
    limits = AdmissionLimits(
        max_model_len=tensors.max_model_len,
        max_sequences=config.max_num_seqs,
        num_blocks=tensors.num_blocks,
        block_size=tensors.block_size,
        vocab_size=max(tensors.tokenizer.get_vocab().values()) + 1,
        serves_adapters=config.enable_lora,
    )
    return Engine(
        runner=tensors.runner,
        adapters=adapters,
        tables=tables,
        scheduler=scheduler,
        make_detokenizer=detokenizers(tensors.tokenizer),
        settings=EngineSettings(
            IntakeLimits(limits, config.max_waiting_requests), frozenset(tensors.eos_token_ids)
        ),
        clock=clock,
        rng=rng,
    )


def _adapters(
    tensors: TensorSide, config: EngineConfig, queues: LoadQueues, clock: Callable[[], float]
) -> AdapterManager:
    num_slots = config.max_loras if config.enable_lora else 0
    max_pages = -(-config.max_lora_rank // ROWS_PER_PAGE)
    if config.enable_lora and config.cache_pools:
        check_room(config.cache_pools, (num_slots, tensors.rank_pool.num_pages), (1, max_pages))
    return AdapterManager(
        loader=_loader(tensors, config),
        pool=tensors.rank_pool,
        slots=Slots(num_slots, PageAllocator(tensors.rank_pool.num_pages), config.cache_pools),
        cache=CpuCache(
            max_bytes=config.cpu_cache_bytes, max_adapters=config.cpu_loras, pools=config.cache_pools
        ),
        reads=queues.reads,
        copies=queues.copies,
        clock=clock,
        max_pages=max_pages,
    )


def _loader(tensors: TensorSide, config: EngineConfig) -> AdapterLoader:
    if config.disk_cache_dir is None or tensors.landed is None:
        return SourceLoader(tensors.reader)
    return DiskLoader(
        reader=tensors.reader,
        landed=tensors.landed,
        cache=DiskCache(config.disk_cache_dir, config.disk_cache_bytes),
    )
