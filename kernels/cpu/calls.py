"""The structs of csrc/calls.h as ctypes sees them: same fields, same order, 8 bytes each.

Sizes and strides count elements; pointers are addresses of tensors that the caller keeps alive.
"""

import ctypes
from typing import ClassVar

import torch
from torch import Tensor

_INT, _POINTER, _DOUBLE = ctypes.c_int64, ctypes.c_void_p, ctypes.c_double

DTYPES = {torch.float32: 0, torch.bfloat16: 1}  # what the kernels compute


class LoraCall(ctypes.Structure):
    """One module's LoRA over the tiles of a step."""

    _fields_: ClassVar = [
        ("x_dtype", _INT),
        ("pool_dtype", _INT),
        ("x", _POINTER),
        ("x_stride", _INT),
        ("out", _POINTER),
        ("out_stride", _INT),
        ("a", _POINTER),
        ("b", _POINTER),
        ("in_features", _INT),
        ("out_features", _INT),
        ("num_slices", _INT),
        ("columns", _POINTER),
        ("module", _INT),
        ("ranks_stride", _INT),
        ("order", _POINTER),
        ("tiles", _POINTER),
        ("num_tiles", _INT),
        ("max_rank", _INT),
    ]


class AttentionCall(ctypes.Structure):
    """One layer's attention over the chunks of a step."""

    _fields_: ClassVar = [
        ("dtype", _INT),
        ("query", _POINTER),
        ("key", _POINTER),
        ("value", _POINTER),
        ("query_token", _INT),
        ("query_head", _INT),
        ("key_token", _INT),
        ("key_head", _INT),
        ("value_token", _INT),
        ("value_head", _INT),
        ("k_cache", _POINTER),
        ("v_cache", _POINTER),
        ("out", _POINTER),
        ("rows", _POINTER),
        ("chunks", _POINTER),
        ("num_chunks", _INT),
        ("num_tokens", _INT),
        ("num_heads", _INT),
        ("kv_heads", _INT),
        ("head_dim", _INT),
        ("v_head_dim", _INT),
        ("block_size", _INT),
        ("scaling", _DOUBLE),
        ("softcap", _DOUBLE),
        ("window", _INT),
        ("sinks", _POINTER),
    ]


class NormCall(ctypes.Structure):
    """RMS norm of contiguous rows."""

    _fields_: ClassVar = [
        ("dtype", _INT),
        ("x", _POINTER),
        ("weight", _POINTER),
        ("out", _POINTER),
        ("num_rows", _INT),
        ("size", _INT),
        ("eps", _DOUBLE),
        ("offset", _DOUBLE),
    ]


class GateCall(ctypes.Structure):
    """silu(gate) · up of rows."""

    _fields_: ClassVar = [
        ("dtype", _INT),
        ("gate", _POINTER),
        ("up", _POINTER),
        ("gate_stride", _INT),
        ("up_stride", _INT),
        ("out", _POINTER),
        ("num_rows", _INT),
        ("size", _INT),
    ]


class GemmCall(ctypes.Structure):
    """A product with packed weights."""

    _fields_: ClassVar = [
        ("dtype", _INT),
        ("x", _POINTER),
        ("x_stride", _INT),
        ("weights", _POINTER),
        ("bias", _POINTER),
        ("out", _POINTER),
        ("out_stride", _INT),
        ("in_features", _INT),
        ("out_features", _INT),
        ("num_tokens", _INT),
    ]


class PackCall(ctypes.Structure):
    """One matrix of an adapter on its way into the rank pool's layout; where both lie is said beside it."""

    _fields_: ClassVar = [
        ("from_dtype", _INT),
        ("to_dtype", _INT),
        ("source", _INT),
        ("from", _INT),
        ("num_rows", _INT),
        ("num_columns", _INT),
        ("to", _INT),
        ("to_stride", _INT),
        ("turned", _INT),
        ("scaling", _DOUBLE),
    ]


class Norm(ctypes.Structure):
    """How rows inside a layer are normalised; no weight: not at all."""

    _fields_: ClassVar = [("weight", _POINTER), ("size", _INT), ("eps", _DOUBLE), ("offset", _DOUBLE)]


class LayerCall(ctypes.Structure):
    """One decoder layer over the tokens of a step."""

    _fields_: ClassVar = [
        ("dtype", _INT),
        ("num_tokens", _INT),
        ("hidden", _INT),
        ("x", _POINTER),
        ("out", _POINTER),
        ("before_attention", Norm),
        ("after_attention", Norm),
        ("before_mlp", Norm),
        ("after_mlp", Norm),
        ("query_norm", Norm),
        ("key_norm", Norm),
        ("qkv", GemmCall),
        ("o", GemmCall),
        ("gate_up", GemmCall),
        ("down", GemmCall),
        ("qkv_lora", _POINTER),
        ("o_lora", _POINTER),
        ("gate_up_lora", _POINTER),
        ("down_lora", _POINTER),
        ("attention", AttentionCall),
        ("cos", _POINTER),
        ("sin", _POINTER),
        ("rotary_dim", _INT),
        ("activation", _INT),
        ("residual", _DOUBLE),
        ("normed", _POINTER),
        ("added", _POINTER),
    ]


def computable(*tensors: Tensor) -> bool:
    """Whether the kernels can read all of these: on the CPU, fp32 or bf16, rows without gaps."""
    return all(
        tensor.dtype in DTYPES and tensor.device.type == "cpu" and tensor.stride(-1) == 1
        for tensor in tensors
    )
