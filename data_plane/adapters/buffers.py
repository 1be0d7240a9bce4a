"""Buffers: host memory for packed adapters, used again when the last tensor in it is gone.

New memory costs its page faults: 84 MB take 40 ms to fault in and 6 ms to fill. Knows nothing of adapters
or caches. Invariant: what is kept spare never takes the memory lent out and spare together past `max_bytes`,
the bound of the tier that these buffers are for.
"""

import ctypes
import weakref
from collections import deque
from collections.abc import Callable
from threading import Lock

import torch
from torch import Tensor


def new_buffer(num_bytes: int) -> Tensor:
    """Memory of the host, [num_bytes] uint8, its contents undefined."""
    return torch.empty(num_bytes, dtype=torch.uint8)


class Buffers:
    """Lends buffers to loader threads. Every method: any thread."""

    def __init__(self, max_bytes: int = 0, allocate: Callable[[int], Tensor] = new_buffer) -> None:
        self._max_bytes = max_bytes
        self._allocate = allocate
        self._lock = Lock()
        self._lent_bytes = 0
        # Longest spare first; adapters of one base and rank mostly have one size, so only that is looked for.
        self._spare: list[Tensor] = []
        self._returned: deque[Tensor] = deque()

    @property
    def lent_bytes(self) -> int:
        """Of buffers in which tensors live."""
        return self._lent_bytes

    @property
    def spare_bytes(self) -> int:
        """Of buffers that wait for their next use."""
        return sum(buffer.nbytes for buffer in self._spare)

    def lend(self, num_bytes: int) -> Tensor:
        """[num_bytes] uint8, contents undefined; its memory comes back when no tensor views it any more."""
        with self._lock:
            self._take_back()
            buffer = self._take_spare(num_bytes)
            self._lent_bytes += num_bytes
            self._shed()
        return self._lent(self._new(num_bytes) if buffer is None else buffer)

    def _new(self, num_bytes: int) -> Tensor:
        try:
            return self._allocate(num_bytes)
        except BaseException:  # of whatever kind: it was not lent
            with self._lock:
                self._lent_bytes -= num_bytes
            raise

    def _lent(self, buffer: Tensor) -> Tensor:
        if not buffer.nbytes:
            return buffer
        # Torch keeps what it was given the memory of until the storage dies, whoever holds views of it.
        owner = (ctypes.c_char * buffer.nbytes).from_address(buffer.data_ptr())
        weakref.finalize(owner, self._give_back, buffer).atexit = False
        return torch.frombuffer(owner, dtype=torch.uint8)

    def _give_back(self, buffer: Tensor) -> None:
        # Tensors die anywhere, inside of these methods too: so the lock is only tried, and whoever holds it
        # takes the buffer, or whoever lends next.
        self._returned.append(buffer)
        if self._lock.acquire(blocking=False):
            try:
                self._take_back()
                self._shed()
            finally:
                self._lock.release()

    def _take_back(self) -> None:
        while self._returned:
            buffer = self._returned.popleft()
            self._lent_bytes -= buffer.nbytes
            self._spare.append(buffer)

    def _take_spare(self, num_bytes: int) -> Tensor | None:
        # The last of its size, because the caches may still hold some of it.
        for i in reversed(range(len(self._spare))):
            if self._spare[i].nbytes == num_bytes:
                return self._spare.pop(i)
        return None

    def _shed(self) -> None:
        while self._spare and self._lent_bytes + self.spare_bytes > self._max_bytes:
            self._spare.pop(0)
