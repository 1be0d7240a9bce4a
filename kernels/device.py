"""Where the model computes, and how numbers get there.

Everything that a CPU and a GPU do differently with memory is behind `Device`; whoever holds one
asks nothing else. Knows nothing of steps, adapters or models. Invariant: work queued after a
method has returned sees what the method moved.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor


class Device(Protocol):
    """Memory of one device; only the thread that steps may use it, unless a method says otherwise."""

    @property
    def torch(self) -> torch.device:
        """Its name in torch."""

    def staging(self, tensor: Tensor) -> Tensor:
        """The same numbers in host memory that copies can read by themselves. Any thread."""

    def put(self, tensor: Tensor) -> Tensor:
        """The same numbers on the device. Any thread, inside `beside` when it is not the stepping one."""

    def upload(self, tensors: Sequence[Tensor], into: Tensor | None = None) -> tuple[Tensor, ...]:
        """Small host tensors on the device by one transfer that nobody waits for.

        `into` is a buffer of bytes on the device, as long as `PackedLayout` says: then the results are
        always at the same addresses.
        """

    def beside(self) -> AbstractContextManager[None]:
        """Work inside goes beside the steps, after those already queued; at the end it is over.

        Any thread.
        """

    def free_bytes(self) -> int | None:
        """Memory that nobody has taken; None: not a device of its own memory."""


class HostDevice:
    """Implements `Device`: the CPU, where everything is in place already."""

    @property
    def torch(self) -> torch.device:
        """See `Device.torch`."""
        return torch.device("cpu")

    def staging(self, tensor: Tensor) -> Tensor:
        """See `Device.staging`."""
        return tensor

    def put(self, tensor: Tensor) -> Tensor:
        """See `Device.put`."""
        return tensor

    def upload(self, tensors: Sequence[Tensor], into: Tensor | None = None) -> tuple[Tensor, ...]:
        """See `Device.upload`; `into` has nothing to hold."""
        return tuple(tensors)

    def beside(self) -> AbstractContextManager[None]:
        """See `Device.beside`."""
        return nullcontext()

    def free_bytes(self) -> int | None:
        """See `Device.free_bytes`."""
        return None
