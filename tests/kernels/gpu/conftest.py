"""The Triton kernel of this package is interpreted: no GPU and no compiler.

Decoration decides, so it is decorated anew in case another test imported it first.
"""

import importlib

from tests.kernels.triton import interpreter

interpreter.install()

from kernels.gpu import kv_write  # noqa: E402 (after the interpreter is installed)

importlib.reload(kv_write)
