"""A CUDA device as `Device`: pinned memory, one transfer a step, a stream for copies beside the steps.

Steps run on the device's default stream. Nothing here runs without CUDA but its construction's
arguments; what can be tried on a CPU is in `packed`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from kernels.gpu.packed import PackedLayout


class CudaDevice:
    """Implements `Device`."""

    def __init__(self, index: int | None = None) -> None:
        self._device = torch.device("cuda", torch.cuda.current_device() if index is None else index)
        self._side = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    @property
    def torch(self) -> torch.device:
        """See `Device.torch`."""
        return self._device

    def staging(self, tensor: Tensor) -> Tensor:
        """See `Device.staging`."""
        return tensor.pin_memory()

    def put(self, tensor: Tensor) -> Tensor:
        """See `Device.put`."""
        return tensor.to(self._device, non_blocking=True)

    def upload(self, tensors: Sequence[Tensor], into: Tensor | None = None) -> tuple[Tensor, ...]:
        """See `Device.upload`."""
        layout = PackedLayout.of(tensors)
        # Of torch's own pool of pinned memory, which gives a buffer out again only after its transfer.
        packed = torch.empty(layout.num_bytes, dtype=torch.uint8, pin_memory=True)
        layout.fill(packed, tensors)
        if into is None:
            into = torch.empty(layout.num_bytes, dtype=torch.uint8, device=self._device)
        layout.check(into)
        into.copy_(packed, non_blocking=True)
        return layout.views(into)

    @contextmanager
    def beside(self) -> Iterator[None]:
        """See `Device.beside`."""
        done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        # A step that is queued may still read what is written here: pages of an evicted adapter, and
        # memory that this stream allocates anew.
        self._side.wait_stream(torch.cuda.default_stream(self._device))
        with torch.cuda.stream(self._side):
            yield
            done.record()
        # Here waits the thread that copies. The one that steps never does: what it is told of is there.
        done.synchronize()

    def free_bytes(self) -> int | None:
        """See `Device.free_bytes`."""
        free, _ = torch.cuda.mem_get_info(self._device)
        kept = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return free + kept

    def total_bytes(self) -> int:
        """All memory of the device."""
        return int(torch.cuda.mem_get_info(self._device)[1])
