"""A CUDA GPU as `Platform`: Triton LoRA, paged attention of torch's library, captured decode steps.

What the library cannot do falls to plain PyTorch on the device, and one log line at start says which
path runs and why. Nothing here was measured on a GPU yet.
"""

from collections.abc import Callable, Sequence

import structlog
import torch
from transformers import PreTrainedModel
from triton.errors import TritonError

from data_plane.adapters.layout import AdapterLayout, End
from data_plane.config import EngineConfig
from data_plane.engine.graphs import GraphedModel, Recorder, capture_sizes
from data_plane.engine.lora_path import EndPath, LoraPath
from data_plane.engine.stage import DeviceStage
from data_plane.engine.step_model import EagerModel, StepModel, StepParts
from data_plane.errors import InvalidRequest
from data_plane.models.step import StepState
from data_plane.models.trace import ModelTrace
from kernels.cpu.attention import PagedAttention, TorchAttention
from kernels.cpu.native import NativeKernels
from kernels.device import Device
from kernels.gpu.attention import GatheredAttention, VarlenAttention, refused_options, refused_shape
from kernels.gpu.device import CudaDevice
from kernels.gpu.graphs import CudaRecorder
from kernels.gpu.probe import CacheShape, probe
from kernels.lora.changes import TorchEndOps
from kernels.lora.end_ops import EndOps
from kernels.lora.ops import LoraOps
from kernels.lora.pool import LoraModule, SlotTable
from kernels.lora.torch_ops import TorchLoraOps
from kernels.lora.triton.checks import DTYPES
from kernels.lora.triton.ends.ops import TritonEndOps
from kernels.lora.triton.ends.tiled import TiledEndOps
from kernels.lora.triton.ops import TritonLoraOps
from kernels.lora.triton.tiled import TiledLoraOps

_log = structlog.get_logger("data_plane.engine")
# Tokens. Torch's built-in kernel takes no other than multiples of this; plain PyTorch takes any, and
# prefixes are shared by whole blocks.
VARLEN_BLOCK_SIZE, PLAIN_BLOCK_SIZE = 256, 16

Probe = Callable[[PagedAttention, CacheShape, torch.device], str | None]


class CudaPlatform:
    """Implements `Platform`; `probe` and `make_recorder` are what only a GPU can do."""

    def __init__(
        self,
        config: EngineConfig,
        device: Device,
        total_bytes: int,
        *,
        probe: Probe = probe,
        make_recorder: Callable[[], Recorder] = CudaRecorder,
    ) -> None:
        self._config, self._device, self._total_bytes = config, device, total_bytes
        self._probe, self._make_recorder = probe, make_recorder
        self._tiled: TiledLoraOps | None = None
        self._tiled_ends: TiledEndOps | None = None
        self._lora: LoraPath | None = None
        self._ends: EndPath | None = None
        self._eager_reason = "enforce_eager is set" if config.enforce_eager else None

    @property
    def device(self) -> Device:
        """See `Platform.device`."""
        return self._device

    @property
    def native(self) -> NativeKernels | None:
        """See `Platform.native`: a GPU has none."""
        return None

    @property
    def tried_attention(self) -> PagedAttention:
        """See `Platform.tried_attention`; the library's is probed on the device instead."""
        return TorchAttention()

    @property
    def scratch_blocks(self) -> int:
        """See `Platform.scratch_blocks`: rows that pad a captured step write there."""
        return 1

    def block_size(self, found: ModelTrace, dtype: torch.dtype) -> int:
        """See `Platform.block_size`: what the library's kernel takes, if it may serve at all."""
        return PLAIN_BLOCK_SIZE if _refused(found, dtype) else VARLEN_BLOCK_SIZE

    def attention(self, found: ModelTrace, dtype: torch.dtype, block_size: int) -> PagedAttention:
        """See `Platform.attention`."""
        gathered = GatheredAttention(TorchAttention())
        varlen = VarlenAttention(gathered)
        reason = self._no_varlen(varlen, found, dtype, block_size)
        if reason is None:
            _log.info("gpu_attention", path="varlen_attn", reason="its numbers are right on this device")
            return varlen
        # Its shapes follow the longest sequence of a step, so no graph can be replayed for another.
        self._eager_reason = self._eager_reason or "attention is plain PyTorch"
        _log.warning("gpu_attention", path="torch", reason=reason)
        return gathered

    def lora_ops(self, modules: Sequence[LoraModule], base_dtype: torch.dtype) -> LoraOps:
        """See `Platform.lora_ops`."""
        dtype = modules[0].a.dtype
        if dtype not in DTYPES or dtype != base_dtype:
            self._eager_reason = self._eager_reason or "LoRA is plain PyTorch"
            reason = f"the Triton kernels compute no adapters of {dtype} on {base_dtype}"
            _log.warning("gpu_lora", path="torch", reason=reason)
            return TorchLoraOps()
        _log.info("gpu_lora", path="triton", reason=f"adapters are {dtype}")
        ops = TritonLoraOps(
            modules, max_rank=self._config.max_lora_rank, max_tokens=self._config.max_num_batched_tokens
        )
        modules[0].slots.columns_in_expand = True
        self._tiled, self._lora = ops, LoraPath(ops)
        return self._lora

    def end_ops(self, slots: SlotTable, dtype: torch.dtype) -> EndOps:
        """See `Platform.end_ops`: by Triton where the projections are."""
        if self._tiled is None:
            return TorchEndOps(slots)
        ops = TritonEndOps(slots, max_rank=self._config.max_lora_rank, device=self._device.torch, dtype=dtype)
        self._tiled_ends, self._ends = ops, EndPath(ops)
        return self._ends

    def kv_cache_bytes(self) -> int:
        """See `Platform.kv_cache_bytes`: as set, or what is left of gpu_memory_utilization."""
        config, free = self._config, self._device.free_bytes()
        if "kv_cache_bytes" in config.model_fields_set or free is None:
            return config.kv_cache_bytes
        taken = self._total_bytes - free + (config.lora_side_bytes if config.enable_lora else 0)
        left = int(self._total_bytes * config.gpu_memory_utilization) - taken
        if left <= 0:
            raise InvalidRequest(
                "gpu_memory_utilization",
                config.gpu_memory_utilization,
                f"leaves no KV cache: of {self._total_bytes} bytes {taken} are taken or reserved",
            )
        return left

    def pack_head(self, model: PreTrainedModel, head: End | None) -> int:
        """See `Platform.pack_head`: the weight is used as it is."""
        return 0

    def finish(
        self, model: PreTrainedModel, layout: AdapterLayout, found: ModelTrace, state: StepState
    ) -> None:
        """See `Platform.finish`: the definition's own modules compute."""

    def step_model(self, parts: StepParts) -> StepModel:
        """See `Platform.step_model`."""
        stage = DeviceStage(self._device, parts.slots, self._tiled, self._tiled_ends)
        eager = EagerModel(parts.base, parts.kv, stage)
        if self._eager_reason is not None:
            _log.info("gpu_graphs", captured=0, reason=self._eager_reason)
            return eager
        graphed = GraphedModel(
            eager,
            parts,
            stage,
            self._device,
            sizes=capture_sizes(self._config.max_num_seqs),
            max_rank=None if self._tiled is None else self._config.max_lora_rank,
        )
        try:
            with torch.inference_mode():
                captured = graphed.capture(self._make_recorder())
        except RuntimeError as error:  # a definition that reads numbers back cannot be recorded
            return self._unrecorded(error, eager)
        except TritonError as error:  # block sizes that this device does not hold, for one
            return self._unrecorded(
                error, EagerModel(parts.base, parts.kv, self._without_triton(error, parts))
            )
        _log.info("gpu_graphs", captured=captured, reason="decode steps are replayed")
        return graphed

    @staticmethod
    def _unrecorded(error: Exception, eager: StepModel) -> StepModel:
        _log.warning("gpu_graphs", captured=0, reason=str(error).partition("\n")[0])
        return eager

    def _without_triton(self, error: Exception, parts: StepParts) -> DeviceStage:
        # Before any step: eagerly the same launches would fail, in service.
        if self._lora is not None:
            self._lora.present, self._tiled = TorchLoraOps(), None
            parts.slots.columns_in_expand = False
            _log.warning("gpu_lora", path="torch", reason=f"a launch failed: {error}")
        # Together, whichever of them failed: a stage describes steps to both or to neither.
        if self._ends is not None:
            self._ends.present, self._tiled_ends = TorchEndOps(parts.slots), None
        return DeviceStage(self._device, parts.slots, None, None)

    def _no_varlen(
        self, varlen: PagedAttention, found: ModelTrace, dtype: torch.dtype, block_size: int
    ) -> str | None:
        refused = _refused(found, dtype)
        if refused is not None:
            return refused
        for shape in {layer.shape for layer in found.attentions}:
            tried = CacheShape(shape.num_heads, shape.k_head_dim, block_size, dtype)
            reason = self._probe(varlen, tried, self._device.torch)
            if reason:
                hint = f" (try a multiple of {VARLEN_BLOCK_SIZE})" if block_size % VARLEN_BLOCK_SIZE else ""
                return f"varlen_attn with block_size {block_size}: {reason}{hint}"
        return None


def _refused(found: ModelTrace, dtype: torch.dtype) -> str | None:
    """Why the library's kernel computes this model on no device; None: it may."""
    for layer in found.attentions:
        shape = layer.shape
        reason = refused_options(layer.options) or refused_shape(shape.k_head_dim, shape.v_head_dim, dtype)
        if reason:
            return f"varlen_attn cannot do {reason} ({layer.name})"
    return None


def cuda_platform(config: EngineConfig) -> CudaPlatform:
    """The current GPU."""
    device = CudaDevice()
    return CudaPlatform(config, device, device.total_bytes())
