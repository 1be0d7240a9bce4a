"""Makes Triton's interpreter honest about bf16, and proves it.

The stock interpreter (3.9) keeps bf16 as raw uint16: `tl.dot` and elementwise operations work on
the bit patterns, and casts from fp32 truncate. Here products are of the fp32 values, casts round
to nearest even, and what is not covered raises. Applies to kernels decorated after `install`,
which must run in a process that compiles none.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import triton
import triton.language as tl
from numpy.typing import NDArray
from triton.runtime import JITFunction
from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder, TensorHandle

Bits = NDArray[np.uint16]
Floats = NDArray[np.float32]


def install() -> None:
    """Interpret every kernel decorated from now on, with an honest bf16; a second call is harmless."""
    triton.knobs.runtime.interpret = True
    for module in (tl, tl.standard):
        for name, function in list(vars(module).items()):
            # Triton's own library was decorated when Triton was imported, by whoever came first.
            if isinstance(function, JITFunction):
                setattr(module, name, InterpretedFunction(function.fn))
    if InterpreterBuilder.create_dot.__name__ != "_dot":
        _patch(InterpreterBuilder)


def to_floats(bits: Bits) -> Floats:
    """Return the values of bf16 bit patterns."""
    return (np.ascontiguousarray(bits).astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_bits(floats: Floats) -> Bits:
    """Round to bf16, ties to even; NaN stays NaN."""
    raw = np.ascontiguousarray(floats, dtype=np.float32).view(np.uint32)
    rounded = (raw + (np.uint32(0x7FFF) + ((raw >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    return np.where(np.isnan(floats), np.uint16(0x7FC0), rounded.astype(np.uint16))


def _is_bf16(handle: Any) -> bool:
    return bool(handle.dtype.scalar == tl.bfloat16)


def _floats(handle: Any) -> Any:
    if _is_bf16(handle):
        return to_floats(handle.data)
    return handle.data.astype(np.float32) if handle.data.dtype == np.float16 else handle.data


def _patch(builder: Any) -> None:
    cast, binary, unary = builder.cast_impl, builder.binary_op, builder.unary_op

    def _cast(self: Any, source: Any, dtype: Any) -> Any:
        before, after = source.dtype.scalar, dtype.scalar
        if before == tl.bfloat16 and after == tl.float32:
            return TensorHandle(to_floats(source.data), after)
        if before == tl.float32 and after == tl.bfloat16:
            return TensorHandle(to_bits(source.data), after)
        if tl.bfloat16 in (before, after) and before != after:
            raise TypeError(f"cast {before} to {after}: the interpreter's bf16 goes through fp32")
        return cast(self, source, dtype)

    def _dot(self: Any, a: Any, b: Any, acc: Any, precision: Any, max_imprecise: Any) -> Any:
        if acc.data.dtype != np.float32:
            raise TypeError(f"dot accumulates in {acc.dtype}: only fp32 is interpreted")
        return TensorHandle(np.matmul(_floats(a), _floats(b)) + acc.data, acc.dtype.scalar)

    def _binary(self: Any, left: Any, right: Any, op: Callable[..., Any]) -> Any:
        if not (_is_bf16(left) or _is_bf16(right)):
            return binary(self, left, right, op)
        result = op(_floats(left), _floats(right))
        if result.dtype == np.bool_:
            return TensorHandle(result, tl.int1)
        return TensorHandle(to_bits(result), tl.bfloat16)

    def _unary(self: Any, value: Any, op: Callable[..., Any]) -> Any:
        if _is_bf16(value):
            raise TypeError("a bf16 unary operation: upcast to fp32 first")
        return unary(self, value, op)

    builder.cast_impl, builder.create_dot = _cast, _dot
    builder.binary_op, builder.unary_op = _binary, _unary
