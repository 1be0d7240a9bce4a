"""What packing an adapter costs beside reading its bytes: Llama-3-8B's shapes, rank 16, all linear.

One thread does both, as a loader thread does, from a warm page cache. Packing is from the tensors of a
parsed file (views of its bytes) to the rank pool's layout, every number checked. Both put 84 MB into memory
that is there already, as a worker's buffers are once it has evicted an adapter; beside it both are measured
into memory that is new to the process, whose page faults cost several times the copying.
"""

import hashlib
import json
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import safetensors.torch
import torch
from safetensors.torch import save_file

from data_plane.adapters.buffers import Buffers
from data_plane.adapters.peft_json import parse_peft_config
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
        "load_vs_read_new_memory": rounds.ratio(PACK_NEW, READ_NEW),
    }


def _rounds(path: Path) -> Rounds:
    kernels = choose_kernels("auto").native
    copier = TorchCopier() if kernels is None else NativeCopier(kernels)
    buffered = llama_shapes.packer(RANK, Buffers(1 << 30), copier)
    bare = llama_shapes.packer(RANK, Buffers(0), copier)
    config = parse_peft_config(json.dumps(peft_config(RANK, ALL_LINEAR)).encode())
    data = path.read_bytes()
    buffer = bytearray(len(data))
    tensors = safetensors.torch.load(data)
    return interleave(
        {
            READ: _seconds(lambda: _read_into(path, buffer)),
            PACK: _seconds(lambda: buffered.pack(tensors, config)),
            READ_NEW: _seconds(path.read_bytes),
            PACK_NEW: _seconds(lambda: bare.pack(tensors, config)),
            "parse": _seconds(lambda: safetensors.torch.load(data)),
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
