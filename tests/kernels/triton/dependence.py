"""What a dependent launch does before it waits for the launch before it, read from its PTX.

The interpreter runs no dependent launch, so its order is proved here: on every path from the entry, no
access through a pointer to what another launch wrote comes before `griddepcontrol.wait`, and no path
ends without one. An address is a pointer's when it is computed from it; a loaded value is none.

    python -m tests.kernels.triton.dependence

Prints JSON: what is found early in the kernels as they are, and in broken ones.
"""

import json
import re
import sys
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

# What the launches before it wrote: nothing of it may be read or written early.
OTHERS = ("x", "hidden", "out")
WAIT = "griddepcontrol.wait"
LEAVES = "leaves"
_REGISTER = re.compile(r"%[a-z]+\d+")
_ACCESS = re.compile(r"(?:ld|st|red|atom)\.(?:\w+\.)*?global|cp\.async\.\w+\.shared\S*\.global|cp\.reduce")

# fmt: off
SHRINK = {
    "x is loaded before the wait": (
        "gdc_wait()  # x is what the launch before this one writes",
        "acc = tl.dot(tl.load(x_at, mask=in_tile[:, None], other=0.0), tl.load(a_at, mask=has_weight[None, :], other=0.0), acc)\n        gdc_wait()",  # noqa: E501
    ),
    "nothing is waited for": ("gdc_wait()  # x is what the launch before this one writes", "pass"),
    "a program without columns does not wait": (
        "if first_column >= num_columns:\n        if DEPENDENT:\n            gdc_wait()\n", "if first_column >= num_columns:\n",  # noqa: E501
    ),
}
EXPAND = {
    "hidden is summed before the wait": (
        "        if DEPENDENT:\n            gdc_wait()\n        total = sum_splits(hidden_at, in_tile[:, None] & (rank_row[None, :] < written), wide_split, SPLIT_K)\n",  # noqa: E501
        "        total = sum_splits(hidden_at, in_tile[:, None] & (rank_row[None, :] < written), wide_split, SPLIT_K)\n        if DEPENDENT:\n            gdc_wait()\n",  # noqa: E501
    ),
    "ranks in blocks are summed without a wait": (
        "        if DEPENDENT:\n            gdc_wait()\n        for done in", "        for done in",
    ),
    "a program without a rank does not wait": (
        "if rank == 0:\n        if DEPENDENT:\n            gdc_wait()\n", "if rank == 0:\n",
    ),
}
# fmt: on


@dataclass(frozen=True, slots=True)
class _Instruction:
    text: str  # without its predicate
    guarded: bool

    @property
    def registers(self) -> list[str]:
        return _REGISTER.findall(self.text)


def early(ptx: str, pointers: Sequence[str], watched: Collection[str]) -> list[str]:
    """Which of `watched` are accessed, and whether a path leaves, before a wait.

    `pointers` are the names of the entry's parameters in order.
    """
    listing, labels = _parsed(ptx)
    owners = _owners(listing, pointers)
    found, seen, reached = set(), set[int](), [0]
    while reached:
        at = reached.pop()
        if at in seen or at >= len(listing):
            continue
        seen.add(at)
        instruction = listing[at]
        if instruction.text.startswith(WAIT):
            continue
        found |= accessed(instruction, owners) & set(watched)
        target = re.match(r"bra(?:\.uni)?\s+(\S+?);", instruction.text)
        if target:
            reached.append(labels[target[1]])
        elif instruction.text.startswith("ret"):
            found.add(LEAVES)
        if instruction.guarded or not (target or instruction.text.startswith("ret")):
            reached.append(at + 1)
    return sorted(found)


def accesses(ptx: str, pointers: Sequence[str]) -> set[str]:
    """Every pointer that is accessed anywhere: one that is missing here was not followed."""
    listing, _ = _parsed(ptx)
    owners = _owners(listing, pointers)
    return set().union(*(accessed(instruction, owners) for instruction in listing))


def accessed(instruction: _Instruction, owners: dict[str, set[str]]) -> set[str]:
    """Whose memory an instruction touches."""
    if not _ACCESS.match(instruction.text):
        return set()
    addresses = re.findall(r"\[\s*(%[a-z]+\d+)", instruction.text)
    return set().union(*(owners.get(address, set()) for address in addresses))


def _parsed(ptx: str) -> tuple[list[_Instruction], dict[str, int]]:
    body = ptx[ptx.index(".entry") :]
    listing, labels = list[_Instruction](), dict[str, int]()
    for line in body[body.index("{") :].splitlines():
        text = line.partition("//")[0].strip()
        if label := re.fullmatch(r"(\$\S+):", text):
            labels[label[1]] = len(listing)
        elif match := re.match(r"(@!?%p\d+\s+)?([a-z][a-z0-9_]*[\s.;].*)", text):
            listing.append(_Instruction(match[2], match[1] is not None))
    return listing, labels


def _owners(listing: Sequence[_Instruction], pointers: Sequence[str]) -> dict[str, set[str]]:
    """Of every register, the pointers that it is computed from."""
    owners: dict[str, set[str]] = {}
    changed = True
    while changed:  # a loop's registers are computed from later ones
        changed = False
        for instruction in listing:
            new = _computed_from(instruction, owners, pointers)
            if new and not new <= owners.setdefault(instruction.registers[0], set()):
                owners[instruction.registers[0]] |= new
                changed = True
    return owners


def _computed_from(
    instruction: _Instruction, owners: dict[str, set[str]], pointers: Sequence[str]
) -> set[str]:
    if parameter := re.match(r"ld\.param\S*\s.*_param_(\d+)", instruction.text):
        return {pointers[int(parameter[1])]}
    if not instruction.registers or instruction.text.startswith(("ld.", "st.", "cp.", "mma", "ldmatrix")):
        return set()
    return set().union(*(owners.get(register, set()) for register in instruction.registers[1:]))


def main() -> int:
    """Compile the kernels and every broken one; print."""
    # Here, because Triton's kernels are decorated when they are imported.
    from kernels.lora.triton import expand, shrink
    from tests.kernels.triton.launch import with_kernel
    from tests.kernels.triton.launches import launches
    from tests.kernels.triton.test_mutations import mutant

    found: dict[str, dict[str, list[str]]] = {"as they are": {}, "broken": {}}
    chosen = [launch for launch in launches("sm_90") if launch.decode]
    for kernel, module, changes in (("shrink", shrink, SHRINK), ("expand", expand, EXPAND)):
        own = [launch for launch in chosen if launch.name.startswith(kernel)]
        # The first row, and for expand also one of more ranks than a block.
        own = [own[0], *own[-1:]] if kernel == "expand" else own[:1]
        for launch in own:
            found["as they are"][launch.name] = with_kernel(launch, launch.kernel, "sm_90").early
        for name, change in changes.items():
            with tempfile.TemporaryDirectory() as directory:
                broken = getattr(mutant(module, change, Path(directory)), f"_{kernel}_kernel")
                faults = {fault for launch in own for fault in with_kernel(launch, broken, "sm_90").early}
            found["broken"][name] = sorted(faults)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
