"""This package's kernels are interpreted: no GPU and no compiler.

Decoration decides, so the kernels are decorated anew in case another test imported them first.
What must be compiled (budgets, dry run) is tested in processes of its own.
"""

import importlib

from tests.kernels.triton import interpreter

interpreter.install()

from kernels.lora.triton import expand, shrink  # noqa: E402 (after the interpreter is installed)

for module in (expand, shrink):
    importlib.reload(module)
