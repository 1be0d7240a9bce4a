"""Places: an adapter's files by the URI of their directory, on disk or in what a worker may read beside it.

Knows no place but the disk; the others are given by scheme. Used on loader threads alone.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from data_plane.adapters.files import AdapterDirectory


class AdapterFiles(Protocol):
    """The files of one adapter."""

    def names(self) -> list[str]:
        """Names of its files, sorted; raise AdapterUnreadable when the place does not answer."""

    def read(self, name: str, *, max_bytes: int) -> bytes:
        """The whole file; raise AdapterRefused when it is larger than `max_bytes`, or AdapterUnreadable."""


Remotes = Mapping[
    str, Callable[[str], AdapterFiles]
]  # by scheme; raises AdapterRefused for what is not allowed


def open_files(uri: str, roots: Sequence[Path], remotes: Remotes) -> AdapterFiles:
    """The files at a URI; raise AdapterRefused when it is outside of what may be read."""
    open_remote = remotes.get(uri.partition("://")[0])
    return AdapterDirectory(uri, roots) if open_remote is None else open_remote(uri)
