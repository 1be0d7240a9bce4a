"""Memory: what this process holds, as the kernel counts it."""

import gc
import resource
from pathlib import Path


def resident_bytes() -> int:
    """Bytes of this process in RAM, after what nobody refers to was collected."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()
