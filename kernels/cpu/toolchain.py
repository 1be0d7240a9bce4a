"""Builds the C++ kernels: once per version of the sources, compiler and flags, into a cache directory.

Knows nothing of what the library computes. A level is one instruction set's version of all
kernels, a separate object file; which of them runs is decided when the library is loaded.
Invariant: a library in the cache is complete, because it is renamed into place when it is.
`python -m kernels.cpu.toolchain` builds with progress, for set-up.
"""

import hashlib
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

SOURCES = Path(__file__).with_name("csrc")
TIMEOUT_S = 300.0
_AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma")
_X86_LEVELS = {"avx2": ("-mavx2", "-mfma"), "avx512": _AVX512, "avx512_bf16": (*_AVX512, "-mavx512bf16")}
# Contraction to fused multiply-add is the default of the GNU dialect only.
_FLAGS = ("-std=gnu++17", "-O3", "-fPIC", "-ffp-contract=fast", "-w")


class BuildFailed(Exception):
    """The library cannot be built here; the message is the reason, in one line."""


def default_cache() -> Path:
    """Where libraries are kept from one start to the next."""
    return Path.home() / ".cache" / "loraplane"


def levels() -> dict[str, tuple[str, ...]]:
    """Compiler flags of every level that this kind of machine may have, the simplest first."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return {"plain": (), **(_X86_LEVELS if x86 else {})}


def built_library(
    cache: Path, *, compiler: str = "g++", report: Callable[[str], None] = lambda line: None
) -> Path:
    """Return the library's path, building it when the cache lacks it; raise BuildFailed."""
    found = shutil.which(compiler)
    if found is None:
        raise BuildFailed(f"no C++ compiler ({compiler}) was found")
    library = cache / f"kernels-{_fingerprint(found)}.so"
    if not library.is_file():
        report(f"building the C++ kernels into {library} (once, about half a minute)")
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache) as directory:
                _compile(found, Path(directory), report).replace(library)
        except OSError as error:
            raise BuildFailed(f"{cache}: {error.strerror}") from error
    return library


def _fingerprint(compiler: str) -> str:
    digest = hashlib.sha256()
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.read_bytes())
    digest.update(_run([compiler, "--version"]).encode())
    digest.update(repr((platform.machine(), _FLAGS, levels())).encode())
    return digest.hexdigest()[:16]


def _compile(compiler: str, directory: Path, report: Callable[[str], None]) -> Path:
    objects = []
    for name, flags in levels().items():
        report(f"  {name}")
        objects.append(directory / f"{name}.o")
        level = [compiler, *_FLAGS, *flags, f"-DLEVEL={name}", "-c", str(SOURCES / "level.cpp")]
        _run([*level, "-o", str(objects[-1])])
    library = directory / "kernels.so"
    dispatch = [compiler, *_FLAGS, "-fopenmp", "-shared", str(SOURCES / "dispatch.cpp"), *map(str, objects)]
    report("  linking")
    _run([*dispatch, "-o", str(library)])
    return library


def _run(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    except subprocess.TimeoutExpired as error:
        raise BuildFailed(f"{command[0]} took longer than {TIMEOUT_S:.0f} s") from error
    except subprocess.CalledProcessError as error:
        first = next((line for line in error.stderr.splitlines() if "error" in line), "no message")
        raise BuildFailed(f"{command[0]} failed: {first}") from error
    return done.stdout


def main() -> int:
    """Build into the default cache and say what happens; a failure is no error: PyTorch computes."""
    try:
        print(f"C++ kernels: {built_library(default_cache(), report=print)}")
    except BuildFailed as error:
        print(f"C++ kernels cannot be built, plain PyTorch will compute: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
