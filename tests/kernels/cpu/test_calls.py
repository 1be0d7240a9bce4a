import ctypes
import re

import pytest

from kernels.cpu import calls
from kernels.cpu.toolchain import SOURCES


@pytest.mark.parametrize("name", ["LoraCall", "AttentionCall", "NormCall", "GateCall", "PackCall"])
def test_python_and_cpp_agree_on_every_field_and_its_order(name: str):
    header = re.sub(r"//.*", "", (SOURCES / "calls.h").read_text())
    body = re.search(rf"struct {name} {{(.*?)}};", header, re.DOTALL)
    assert body is not None
    declared = [re.findall(r"\w+", part)[-1] for part in re.split(r"[;,]", body[1]) if part.strip()]
    struct = getattr(calls, name)
    assert [field[0] for field in struct._fields_] == declared
    assert ctypes.sizeof(struct) == 8 * len(declared)
