"""What the adapter life cycle needs of tensors and files, as Protocols.

The life cycle (leases, tiers, loading) is policy and reaches no torch; `loader` and `pool`
implement these with tensors.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

from data_plane.adapters.revision import AdapterSource

Keep = Callable[[Mapping[str, bytes]], None]


class PackedAdapter(Protocol):
    """An adapter's weights in the rank pool's layout, in host memory: what the CPU cache holds."""

    @property
    def rank(self) -> int:
        """Largest rank of any module."""

    @property
    def num_bytes(self) -> int:
        """Host memory it takes."""

    @property
    def num_pages(self) -> int:
        """Pages of the rank pool it needs: ceil(rank / 8)."""


class AdapterReader(Protocol):
    """Source → packed weights. Called on loader threads, never on the step loop."""

    def read(self, source: AdapterSource, *, keep: Keep | None = None) -> PackedAdapter:
        """Read once, verify the digest, check every tensor, merge scaling, pack.

        `keep` gets the files by name, once their digest and everything in them was found right.
        Raises AdapterRefused (the files can never be served) or AdapterUnreadable (try again).
        """


class RankPool(Protocol):
    """The tensors of all slots. Pages are written off the step loop, slots bound on it."""

    @property
    def num_pages(self) -> int:
        """Pages in the pool."""

    @property
    def page_bytes(self) -> int:
        """Bytes of one page over all modules."""

    @property
    def side_bytes(self) -> int:
        """Bytes that all slots hold beside their pages now."""

    def side_bytes_of(self, pages: tuple[int, ...]) -> int:
        """Bytes that the slot bound to these pages holds beside them; 0 when none is."""

    def write(self, pages: tuple[int, ...], adapter: PackedAdapter) -> PackedAdapter:
        """Copy weights into pages that no slot is bound to. Any thread, also several at once.

        Returns what to bind the pages with: the adapter, with what it has beside the pages where the
        model computes.
        """

    def bind(self, slot: int, pages: tuple[int, ...], adapter: PackedAdapter) -> None:
        """From the next step on, `slot` computes these pages. Step loop only; constant time."""

    def unbind(self, slot: int) -> None:
        """The slot holds nothing. Step loop only."""
