"""The CPU as `Platform`: C++ kernels where they can be built, plain PyTorch otherwise."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from data_plane.adapters.layout import AdapterLayout, End
from data_plane.config import EngineConfig
from data_plane.engine.cpu_kernels import Kernels, choose_kernels
from data_plane.engine.stage import HostStage
from data_plane.engine.step_model import EagerModel, StepModel, StepParts
from data_plane.models.layer_search import fuse_layers
from data_plane.models.packed_head import pack_head
from data_plane.models.pointwise import fuse_pointwise
from data_plane.models.step import StepState
from data_plane.models.trace import ModelTrace
from kernels.cpu.attention import PagedAttention
from kernels.cpu.calls import DTYPES
from kernels.cpu.native import NativeKernels
from kernels.cpu.native_lora import NativeLoraOps
from kernels.device import Device, HostDevice
from kernels.lora.changes import TorchEndOps
from kernels.lora.end_ops import EndOps
from kernels.lora.ops import LoraOps
from kernels.lora.pool import LoraModule, SlotTable

BLOCK_SIZE = 16  # tokens; prefixes are shared by whole blocks, so a small one shares more


class CpuPlatform:
    """Implements `Platform`; `kernels` None: those that the configuration asks for."""

    def __init__(self, config: EngineConfig, kernels: Kernels | None = None) -> None:
        self._kernels = kernels or choose_kernels(config.cpu_kernels)
        self._kv_cache_bytes = config.kv_cache_bytes
        self._device = HostDevice()

    @property
    def device(self) -> Device:
        """See `Platform.device`."""
        return self._device

    @property
    def native(self) -> NativeKernels | None:
        """See `Platform.native`."""
        return self._kernels.native

    @property
    def tried_attention(self) -> PagedAttention:
        """See `Platform.tried_attention`: the one that will serve."""
        return self._kernels.attention

    @property
    def scratch_blocks(self) -> int:
        """See `Platform.scratch_blocks`."""
        return 0

    def block_size(self, found: ModelTrace, dtype: torch.dtype) -> int:
        """See `Platform.block_size`."""
        return BLOCK_SIZE

    def attention(self, found: ModelTrace, dtype: torch.dtype, block_size: int) -> PagedAttention:
        """See `Platform.attention`."""
        return self._kernels.attention

    def lora_ops(self, modules: Sequence[LoraModule], base_dtype: torch.dtype) -> LoraOps:
        """See `Platform.lora_ops`."""
        lora = self._kernels.lora
        if (
            isinstance(lora, NativeLoraOps)
            and modules
            and base_dtype in DTYPES
            and modules[0].a.dtype in DTYPES
        ):
            modules[0].slots.columns_in_expand = True
        return lora

    def end_ops(self, slots: SlotTable, dtype: torch.dtype) -> EndOps:
        """See `Platform.end_ops`."""
        return TorchEndOps(slots)

    def kv_cache_bytes(self) -> int:
        """See `Platform.kv_cache_bytes`."""
        return self._kv_cache_bytes

    def pack_head(self, model: PreTrainedModel, head: End | None) -> int:
        """See `Platform.pack_head`."""
        return pack_head(model, head, self.native)

    def finish(
        self, model: PreTrainedModel, layout: AdapterLayout, found: ModelTrace, state: StepState
    ) -> None:
        """See `Platform.finish`."""
        if self.native is not None:
            fuse_pointwise(model, layout, self.native)
            fuse_layers(model, found, state, self.native)

    def step_model(self, parts: StepParts) -> StepModel:
        """See `Platform.step_model`."""
        return EagerModel(parts.base, parts.kv, HostStage())
