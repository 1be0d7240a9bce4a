"""Compiles a launch for a GPU that is not here, and reads what the compiler made of it.

Triton compiles for any target; `cuobjdump` and `nvdisasm` come with it. Must run in a process
where kernels are not interpreted.
"""

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.lora.triton.configs import Backend
from tests.kernels.triton.dependence import OTHERS, accesses, early

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_86": GPUTarget("cuda", 86, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# Shared memory that one program may have, in bytes.
MAX_SHARED = {"sm_80": 166912, "sm_86": 101376, "sm_90": 232448, "sm_100": 232448, "gfx942": 65536}
_REGISTERS, _GRANULE = 65536, 256  # of a streaming multiprocessor; allocated by warp in granules
_SHARED_OF_SM = {"sm_80": 167936, "sm_86": 102400, "sm_90": 233472, "sm_100": 233472}
_WARPS_OF_SM = {"sm_80": 64, "sm_86": 48, "sm_90": 64, "sm_100": 64}


@dataclass(frozen=True, slots=True)
class Resources:
    """What one compiled launch takes and how it reaches memory."""

    registers: int
    spills: int  # instructions (CUDA) or registers (AMD) that go to local memory
    shared_bytes: int
    tensor_core: int  # matrix instructions
    wide_loads: int  # 16 bytes from global memory into registers
    async_copies: int  # global to shared memory
    narrow_async_copies: int  # of those, under 16 bytes
    wide_stores: int
    stores: int
    atomics: int
    dependent: str  # waits (W) and releases (R) of a dependent launch, in program order
    early: list[str]  # what a dependent launch touches before it waits: see `dependence`


def compile_launch(
    kernel: Any, signature: dict[str, str], constants: dict[str, Any], target: str, **options: Any
) -> Resources:
    """Compile one specialisation; a type that ends in `:16` is known to be divisible by 16."""
    types, hints = {}, {}
    for place, name in enumerate(kernel.arg_names):
        kind, _, divisor = ("constexpr" if name in constants else signature[name]).partition(":")
        types[name] = kind
        if divisor:
            hints[(place,)] = [["tt.divisibility", int(divisor)]]
    source = ASTSource(kernel, types, constexprs=constants, attrs=hints)
    compiled = triton.compile(source, target=TARGETS[target], options=options)
    if target.startswith("gfx"):
        return _read_amd(compiled)
    used = _read_cuda(compiled)
    return replace(used, early=_early(compiled, list(signature))) if constants.get("DEPENDENT") else used


def backend_of(target: str) -> Backend:
    """Whose block sizes are launched there."""
    return "hip" if target.startswith("gfx") else "cuda"


def programs_per_sm(target: str, resources: Resources, num_warps: int) -> int:
    """How many programs a streaming multiprocessor holds at once."""
    by_warp = -(-resources.registers * 32 // _GRANULE) * _GRANULE
    by_registers = _REGISTERS // by_warp // num_warps
    by_shared = _SHARED_OF_SM[target] // (resources.shared_bytes + 1024)
    return min(_WARPS_OF_SM[target] // num_warps, by_registers, by_shared)


def _read_cuda(compiled: Any) -> Resources:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _output("cuobjdump", "-res-usage", file.name)
        assembly = _output("nvdisasm", file.name)
    listed = re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", assembly, re.M)
    counts = Counter(listed)

    def count(pattern: str) -> int:
        return sum(number for name, number in counts.items() if re.match(pattern, name))

    order = "".join("W" if name == "ACQBULK" else "R" for name in listed if name in ("ACQBULK", "PREEXIT"))
    copies = count("LDGSTS")
    return Resources(
        registers=int(re.findall(r"REG:(\d+)", usage)[-1]),
        spills=count("STL") + count("LDL"),
        shared_bytes=compiled.metadata.shared,
        tensor_core=count("HMMA|HGMMA|UTC.*MMA"),
        wide_loads=count(r"LDG\.E.*128"),
        async_copies=copies,
        narrow_async_copies=copies - count(r"LDGSTS.*128"),
        wide_stores=count(r"STG\.E.*128"),
        stores=count("STG"),
        # Not REDUX (a warp's maximum) nor ATOMS (how sm_100 shares its matrix memory).
        atomics=count(r"REDG?\.|ATOMG?\."),
        dependent=order,
        early=[],
    )


def _read_amd(compiled: Any) -> Resources:
    assembly = compiled.asm["amdgcn"]

    def field(name: str) -> int:
        return int(re.findall(rf"\.{name}:\s+(\d+)", assembly)[-1])

    def count(pattern: str) -> int:
        return len(re.findall(pattern, assembly))

    return Resources(
        registers=field("vgpr_count"),
        spills=field("vgpr_spill_count"),
        shared_bytes=compiled.metadata.shared,
        tensor_core=count("v_mfma"),
        wide_loads=count("(?:global|buffer)_load_dwordx4"),
        async_copies=0,
        narrow_async_copies=0,
        wide_stores=count("(?:global|buffer)_store_dwordx4"),
        stores=count("(?:global|buffer)_store"),
        atomics=count("(?:global|buffer)_atomic"),
        dependent="",
        early=[],
    )


def _early(compiled: Any, parameters: list[str]) -> list[str]:
    ptx, own = compiled.asm["ptx"], [name for name in OTHERS if name in parameters]
    unseen = set(own) - accesses(ptx, parameters)
    # A pointer that was not followed proves nothing.
    return [*early(ptx, parameters, own), *(f"no access to {name} was found" for name in sorted(unseen))]


def _output(tool: str, *arguments: str) -> str:
    done = subprocess.run([TOOLS / tool, *arguments], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout
