"""What packing an adapter costs beside reading its bytes: Llama-3-8B's shapes, rank 16, all linear.

One thread does both, as a loader thread does, from a warm page cache. Packing is from the bytes of the two
files, options and header parsed, to the rank pool's layout, every number checked: with the plan of the
adapter's recipe, as for every adapter but the recipe's first, and with a plan made anew. Both put 84 MB into
memory that is there already, as a worker's buffers are once it has evicted an adapter; beside it both are
measured into memory that is new to the process, whose page faults cost several times the copying.
"""

import hashlib
import json
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from data_plane.adapters.buffers import Buffers
from data_plane.adapters.packer import LoraPacker
from data_plane.adapters.packing import PackedLora
from data_plane.adapters.peft_json import parse_peft_config
from data_plane.adapters.weight_files import WeightFiles
from data_plane.engine.cpu_kernels import choose_kernels
from kernels.cpu.matrices import TorchCopier
from kernels.cpu.native_matrices import NativeCopier
from tests.benchmarks import llama_shapes
from tests.benchmarks.interleaved import Measure, Rounds, interleave
from tests.benchmarks.synthetic import ALL_LINEAR, peft_config

RANK = 16
NUM_ROUNDS = 15
NUM_WARM_UPS = 2
READ, PACK = "raw read into memory that is there", "pack into memory that is there"
FIRST = "the same, the first of its recipe"
READ_NEW, PACK_NEW = "raw read into new memory", "pack into new memory"


def measure() -> dict[str, float]:
    """load_vs_read."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "adapter_model.safetensors"
        save_file(llama_shapes.tensors(RANK), path)
        # A thread of its own, because loader threads compute alone (data_plane/openmp.py).
        with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as loader:
            rounds = loader.submit(_rounds, path).result()
        print(f"  {path.stat().st_size / 1e6:.0f} MB")
    rounds.describe("ms", 1000)
    return {
        "load_vs_read": rounds.ratio(PACK, READ),
        "load_vs_read_first": rounds.ratio(FIRST, READ),
        "load_vs_read_new_memory": rounds.ratio(PACK_NEW, READ_NEW),
    }


def _rounds(path: Path) -> Rounds:
    kernels = choose_kernels("auto").native
    copier = TorchCopier() if kernels is None else NativeCopier(kernels)
    buffered = llama_shapes.packer(RANK, Buffers(1 << 30), copier)
    bare = llama_shapes.packer(RANK, Buffers(0), copier)
    options = json.dumps(peft_config(RANK, ALL_LINEAR)).encode()
    data = path.read_bytes()
    buffer = bytearray(len(data))

    def pack(packer: LoraPacker) -> PackedLora:
        return packer.pack_weights(WeightFiles({path.name: data}), parse_peft_config(options))

    return interleave(
        {
            READ: _seconds(lambda: _read_into(path, buffer)),
            PACK: _seconds(lambda: pack(buffered)),
            FIRST: _seconds(lambda: pack(replace(buffered))),  # which has no plans
            READ_NEW: _seconds(path.read_bytes),
            PACK_NEW: _seconds(lambda: pack(bare)),
            "sha256": _seconds(lambda: hashlib.sha256(data).digest()),
        },
        NUM_ROUNDS,
        num_warm_ups=NUM_WARM_UPS,
    )


def _read_into(path: Path, buffer: bytearray) -> None:
    with path.open("rb", buffering=0) as file:
        file.readinto(buffer)


def _seconds(work: Callable[[], object]) -> Measure:
    def measure(number: int) -> float:
        began_s = time.perf_counter()
        result = work()
        took_s = time.perf_counter() - began_s
        del result  # freeing it is not part of the work
        return took_s

    return measure
