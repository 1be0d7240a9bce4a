"""Packer: an adapter from tensors and options, checked against one base model and packed for its pool.

Where the tensors come from (files, a training loop, nowhere) is the caller's business. Immutable but for
the plans it keeps; used by loader threads, several at once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from data_plane.adapters.base_weights import BaseWeights
from data_plane.adapters.buffers import Buffers
from data_plane.adapters.layout import AdapterLayout
from data_plane.adapters.packing import PackedLora, pack_zeros
from data_plane.adapters.peft_config import PeftConfig
from data_plane.adapters.plan import PackPlan, Target, make_plan
from data_plane.adapters.plans import Plans
from data_plane.adapters.weights import GivenTensors, Weights
from data_plane.errors import AdapterRefused
from kernels.cpu.matrices import MatrixCopier, TorchCopier


@dataclass(frozen=True, slots=True)
class LoraPacker:
    """Makes `PackedLora` for one base model and one pool."""

    layout: AdapterLayout
    base: BaseWeights
    max_rank: int
    max_side_bytes: int  # of one adapter, beside its rank rows
    dtype: torch.dtype
    # Rank rows are packed into these: memory that a GPU's copies read by themselves, where there is one.
    buffers: Buffers = field(default_factory=Buffers)
    # Brings the side there too; a CPU has no other memory.
    staging: Callable[[Tensor], Tensor] | None = None
    copier: MatrixCopier = field(default_factory=TorchCopier)

    # Its own: what a plan depends on besides is this packer, and one made from it by `replace` gets others.
    plans: Plans = field(default_factory=Plans, init=False, repr=False, compare=False)

    def pack(self, tensors: Mapping[str, Tensor], config: PeftConfig) -> PackedLora:
        """Tensors by the names PEFT gives them, packed; raise AdapterRefused unless all of them apply."""
        return self.pack_weights(GivenTensors(tensors), config)

    def pack_weights(self, weights: Weights, config: PeftConfig) -> PackedLora:
        """The same of tensors wherever they are, with the plan of their recipe."""
        plan = self.plans.get((weights.key, config.key), lambda: self._plan(weights, config))
        packed = plan.pack(weights.sources(), self.buffers)
        if packed.side_bytes > self.max_side_bytes:
            raise AdapterRefused(
                f"its embedding, output head, DoRA scales and biases take {packed.side_bytes} bytes, "
                f"above the {self.max_side_bytes} that lora_side_bytes gives each slot"
            )
        if self.staging is None or packed.side is None:
            return packed
        return replace(packed, side=packed.side.moved(self.staging))

    def dummy(self, rank: int) -> PackedLora:
        """An adapter of zeros on every projection, for warm-up: it costs what a real one costs."""
        if not 1 <= rank <= self.max_rank:
            raise AdapterRefused(f"rank {rank} is not between 1 and max_lora_rank {self.max_rank}")
        return pack_zeros(self.layout, rank, self.dtype)

    def max_file_bytes(self) -> int:
        """Every module changed, in 8-byte floats: every tensor is applied, so no file needs more."""
        return self.layout.max_elements(self.max_rank) * 8

    def _plan(self, weights: Weights, config: PeftConfig) -> PackPlan:
        self._refuse_ranks(config)
        target = Target(self.layout, self.base, self.dtype)
        return make_plan(weights.stored(), config, target, self.copier)

    def _refuse_ranks(self, config: PeftConfig) -> None:
        for name in (*self.layout.targets, *self.layout.ends):
            if config.targets(name) and config.rank(name) > self.max_rank:
                raise AdapterRefused(
                    f"{name}: rank {config.rank(name)} is above max_lora_rank {self.max_rank}"
                )
