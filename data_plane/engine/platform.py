"""Platform: everything that depends on where the model computes, chosen once at start.

`cpu_platform` and `cuda_platform` implement it; the rest of the engine never asks which it has. A
platform is imported when it is chosen, so that a worker without a GPU needs no Triton.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import structlog
import torch
from transformers import PreTrainedModel

from data_plane.adapters.layout import AdapterLayout, End
from data_plane.config import EngineConfig
from data_plane.engine.step_model import StepModel, StepParts
from data_plane.errors import InvalidRequest
from data_plane.models.step import StepState
from data_plane.models.trace import ModelTrace
from kernels.cpu.attention import PagedAttention
from kernels.cpu.native import NativeKernels
from kernels.device import Device
from kernels.lora.end_ops import EndOps
from kernels.lora.ops import LoraOps
from kernels.lora.pool import LoraModule, SlotTable

_log = structlog.get_logger("data_plane.engine")


class Platform(Protocol):
    """One device and what computes on it. Called while a runtime is built, in this order."""

    @property
    def device(self) -> Device:
        """Where weights, pools and steps are."""

    @property
    def native(self) -> NativeKernels | None:
        """The CPU's C++ kernels, where they compute."""

    @property
    def tried_attention(self) -> PagedAttention:
        """What the self-check of an architecture attends with, on the CPU and in fp32."""

    @property
    def scratch_blocks(self) -> int:
        """Blocks at the end of the KV cache that belong to no sequence."""

    def block_size(self, found: ModelTrace, dtype: torch.dtype) -> int:
        """Tokens in a KV-cache block, where the configuration leaves it open."""

    def attention(self, found: ModelTrace, dtype: torch.dtype, block_size: int) -> PagedAttention:
        """How the model attends."""

    def lora_ops(self, modules: Sequence[LoraModule], base_dtype: torch.dtype) -> LoraOps:
        """How adapters of this pool are computed on activations of the base's dtype."""

    def end_ops(self, slots: SlotTable, dtype: torch.dtype) -> EndOps:
        """How their changes of the embedding and the head are, after `lora_ops`; `dtype` is the base's."""

    def kv_cache_bytes(self) -> int:
        """For the KV cache, once the weights and the rank pool have taken theirs."""

    def pack_head(self, model: PreTrainedModel, head: End | None) -> int:
        """Prepare the output head; return the bytes that this takes."""

    def finish(
        self, model: PreTrainedModel, layout: AdapterLayout, found: ModelTrace, state: StepState
    ) -> None:
        """Replace what this platform computes better; last, because it moves modules to other names."""

    def step_model(self, parts: StepParts) -> StepModel:
        """What the runner computes steps with."""


def choose_platform(config: EngineConfig, has_cuda: Callable[[], bool] = torch.cuda.is_available) -> Platform:
    """`auto` is CUDA where there is one; raise InvalidRequest for a device that is not there."""
    available = config.device != "cpu" and has_cuda()
    if config.device == "cuda" and not available:
        raise InvalidRequest("device", "cuda", "needs a GPU: torch.cuda.is_available() is False")
    reason = "torch sees a GPU" if available else "torch sees no GPU"
    if config.device != "auto":
        reason = f"device is {config.device}"
    _log.info("device", device="cuda" if available else "cpu", reason=reason)
    if available:
        from data_plane.engine.cuda_platform import cuda_platform  # noqa: PLC0415 - see the module's text

        return cuda_platform(config)
    from data_plane.engine.cpu_platform import CpuPlatform  # noqa: PLC0415

    return CpuPlatform(config)
