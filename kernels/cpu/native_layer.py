"""Whole decoder layers by the C++ kernels: csrc/layer.h says what they compute.

Between one product and the next the definition of a layer makes a dozen calls of a few microseconds
each, 30 times a step; here the threads go from one phase to the next by themselves. Knows the
layer as weights and options; who found them, and proved that they are the layer, is the caller.
"""

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import torch
from torch import Tensor

from kernels.cpu.attention import AttentionOptions
from kernels.cpu.calls import DTYPES, GemmCall, LayerCall, LoraCall, Norm
from kernels.cpu.native import NativeKernels
from kernels.cpu.native_attention import NativeAttention
from kernels.cpu.native_linear import NativeLinear
from kernels.cpu.native_pointwise import NormOptions
from kernels.cpu.paging import PagedBatch


class Activation(IntEnum):
    """Of the gate, as csrc/calls.h counts them."""

    SILU = 0
    GELU_TANH = 1


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """An RMS norm inside the layer."""

    weight: Tensor  # [size]; several norms beside each other where the rows are longer
    options: NormOptions


PLACES = ("before_attention", "after_attention", "before_mlp", "after_mlp", "query_norm", "key_norm")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeights:
    """Everything that makes a decoder layer."""

    qkv: NativeLinear  # queries, keys, values: consecutive columns
    o: NativeLinear
    gate_up: NativeLinear  # gates, then what they are multiplied with
    down: NativeLinear
    norms: Mapping[str, LayerNorm]  # by PLACES; absent: there is none
    num_heads: int
    k_cache: Tensor  # [num_blocks, block_size, kv_heads, head_dim]
    v_cache: Tensor  # [num_blocks, block_size, kv_heads, v_head_dim]
    attention: AttentionOptions
    activation: Activation
    rotates: bool  # whether positions are rotated into queries and keys
    residual: float = 1.0  # factor of what each half adds to the stream

    @property
    def fits(self) -> bool:
        """Whether the sizes belong together and all numbers are of one dtype."""
        kv_heads, head_dim = self.k_cache.shape[2:]
        query, key, value = self.num_heads * head_dim, kv_heads * head_dim, kv_heads * self.v_cache.shape[3]
        hidden = self.qkv.in_features
        sizes = {
            "before_attention": hidden,
            "after_attention": hidden,
            "before_mlp": hidden,
            "after_mlp": hidden,
        }
        tensors = [self.k_cache, self.v_cache, *(norm.weight for norm in self.norms.values())]
        return (
            self.qkv.out_features == query + key + value
            and self.o.in_features == self.num_heads * self.v_cache.shape[3]
            and self.gate_up.in_features == self.o.out_features == self.down.out_features == hidden
            and self.gate_up.out_features == 2 * self.down.in_features
            and all(
                self.norms[place].weight.shape[0] == size
                for place, size in sizes.items()
                if place in self.norms
            )
            and all(
                size % self.norms[place].weight.shape[0] == 0
                for place, size in (("query_norm", query), ("key_norm", key))
                if place in self.norms
            )
            and {tensor.dtype for tensor in tensors} == {self.qkv.dtype}
            and self.attention.sinks is None
        )


@dataclass(slots=True)
class LayerBuffers:
    """What a layer computes on its way; one set for all layers of a model, as large as the largest step."""

    dtype: torch.dtype
    num_tokens: int = 0
    generation: int = 0  # grows when the buffers move
    _buffers: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    def reserve(self, num_tokens: int) -> None:
        """Make room for a step; what was in the buffers is lost."""
        if num_tokens > self.num_tokens:
            self.num_tokens = 1 << (num_tokens - 1).bit_length()
            self.generation += 1
            self._buffers.clear()

    def address(self, name: str, size: int) -> int:
        """Of a buffer [num_tokens, size]; layers of other sizes have buffers of their own."""
        buffer = self._buffers.get((name, size))
        if buffer is None:
            buffer = self._buffers[name, size] = torch.empty(self.num_tokens, size, dtype=self.dtype)
        return buffer.data_ptr()


class NativeLayer:
    """A decoder layer that reads and writes the paged KV cache; `LayerChain` computes it."""

    def __init__(self, attention: NativeAttention, weights: LayerWeights, buffers: LayerBuffers) -> None:
        self._attention = attention
        self._weights = weights  # kept alive for their addresses, as are:
        self._rotary: tuple[Tensor, Tensor] | None = None
        self._stream: tuple[Tensor, Tensor] | None = None
        self._buffers = buffers
        self._generation = -1
        self.call = _call(weights)
        # A field that is a struct is a new object each time it is asked for.
        self._products = (self.call.qkv, self.call.o, self.call.gate_up, self.call.down)
        self._attend = self.call.attention

    def prepare(
        self,
        x: Tensor,
        out: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        batch: PagedBatch,
        lora: Sequence[LoraCall | None],
    ) -> None:
        """Say what the layer is to compute next: `out` from the residual stream `x`, which it may be.

        x, out [num_tokens, hidden], contiguous; `rotary`: cos and sin [num_tokens, rotary_dim] of x's dtype,
        contiguous; `lora`: of qkv, o, gate_up and down, prepared for this step.
        """
        num_tokens = x.shape[0]
        self._buffers.reserve(num_tokens)
        if self._generation != self._buffers.generation:
            self._place()
        call, attend = self.call, self._attend
        self._rotary, self._stream = rotary, (x, out)
        call.num_tokens = attend.num_tokens = num_tokens
        call.x, call.out = x.data_ptr(), out.data_ptr()
        for product in self._products:
            product.num_tokens = num_tokens
        qkv, _, gate_up, _ = self._products
        if call.before_attention.weight is None:
            qkv.x = call.x
        if call.before_mlp.weight is None:
            gate_up.x = call.out
        if rotary is not None and self._weights.rotates:
            cos, sin = rotary
            call.cos, call.sin, call.rotary_dim = cos.data_ptr(), sin.data_ptr(), cos.shape[1]
        chunks = self._attention.chunks(batch)
        attend.rows, attend.block_size = batch.rows.data_ptr(), batch.block_size
        attend.chunks, attend.num_chunks = chunks.data_ptr(), chunks.shape[0]
        call.qkv_lora, call.o_lora, call.gate_up_lora, call.down_lora = map(self._bind, self._products, lora)

    def _bind(self, product: GemmCall, lora: LoraCall | None) -> int | None:
        """Let the LoRA of a product read and write what the product does; its address."""
        if lora is None:
            return None
        lora.x_dtype = product.dtype
        lora.x, lora.x_stride = product.x, product.x_stride
        lora.out, lora.out_stride = product.out, product.out_stride
        return ctypes.addressof(lora)

    def _place(self) -> None:
        """The buffers have moved."""
        weights, buffers, call = self._weights, self._buffers, self.call
        self._generation = buffers.generation
        hidden, inner = weights.qkv.in_features, weights.down.in_features
        attended = weights.o.in_features
        call.normed, call.added = buffers.address("normed", hidden), buffers.address("added", hidden)
        outputs = {
            "qkv": (buffers.address("qkv", weights.qkv.out_features), weights.qkv.out_features),
            "attended": (buffers.address("attended", attended), attended),
            "gates": (buffers.address("gates", 2 * inner), 2 * inner),
            "inner": (buffers.address("inner", inner), inner),
            "normed": (call.normed, hidden),
            "added": (call.added, hidden),
        }
        places = (("normed", "qkv"), ("attended", "added"), ("normed", "gates"), ("inner", "added"))
        for product, (x, out) in zip(self._products, places, strict=True):
            product.x, product.x_stride = outputs[x]
            product.out, product.out_stride = outputs[out]
        _place_attention(call, weights, outputs["qkv"][0], outputs["attended"][0])


class LayerChain:
    """Layers that follow each other, computed by one call.

    One call and not 30: each gives the interpreter lock away and has to win it back from the event loop.
    """

    def __init__(self, kernels: NativeKernels, layers: Sequence[NativeLayer]) -> None:
        self._kernels, self._layers = kernels, tuple(layers)  # kept alive for their addresses
        self._calls = (ctypes.c_void_p * len(layers))(*(ctypes.addressof(layer.call) for layer in layers))

    def run(self) -> None:
        """Compute what every layer was prepared for."""
        self._kernels.layers(self._calls)


def _call(weights: LayerWeights) -> LayerCall:
    k_cache, v_cache, options = weights.k_cache, weights.v_cache, weights.attention
    call = LayerCall(
        dtype=DTYPES[weights.qkv.dtype],
        hidden=weights.qkv.in_features,
        qkv=weights.qkv.call(),
        o=weights.o.call(),
        gate_up=weights.gate_up.call(),
        down=weights.down.call(),
        activation=weights.activation,
        residual=weights.residual,
    )
    for place, norm in weights.norms.items():
        struct = Norm(norm.weight.data_ptr(), norm.weight.shape[0], norm.options.eps, norm.options.offset)
        setattr(call, place, struct)
    attend = call.attention
    attend.dtype = call.dtype
    attend.k_cache, attend.v_cache = k_cache.data_ptr(), v_cache.data_ptr()
    attend.num_heads, attend.kv_heads = weights.num_heads, k_cache.shape[2]
    attend.head_dim, attend.v_head_dim = k_cache.shape[3], v_cache.shape[3]
    attend.query_head = attend.key_head = k_cache.shape[3]
    attend.value_head = v_cache.shape[3]
    attend.query_token = attend.key_token = attend.value_token = weights.qkv.out_features
    attend.scaling, attend.softcap = options.scaling, options.softcap or 0.0
    attend.window = options.sliding_window or 0
    return call


def _place_attention(call: LayerCall, weights: LayerWeights, qkv: int, attended: int) -> None:
    """Queries, keys and values lie beside each other in a row."""
    attend, itemsize = call.attention, weights.k_cache.itemsize
    query = weights.num_heads * attend.head_dim
    key = attend.kv_heads * attend.head_dim
    attend.query = qkv
    attend.key = qkv + query * itemsize
    attend.value = qkv + (query + key) * itemsize
    attend.out = attended
