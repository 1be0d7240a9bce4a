"""Loader: packed weights for a revision, from the disk cache where it has them, else from its source.

Runs on loader threads. A disk entry is believed only after its digest was checked; a damaged one is
dropped and the source is read instead. A disk that fails or is full costs speed, never an answer.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import structlog

from data_plane.adapters.disk_cache import DiskCache
from data_plane.adapters.revision import AdapterSource, Tier
from data_plane.adapters.types import AdapterReader, PackedAdapter
from data_plane.errors import AdapterError

_log = structlog.get_logger("data_plane.adapters")


@dataclass(frozen=True, slots=True)
class Loaded:
    """Weights, and the tier that had them: DISK or SOURCE."""

    adapter: PackedAdapter
    tier: Tier


class AdapterLoader(Protocol):
    """What the life cycle reads adapters with."""

    @property
    def disk_bytes(self) -> int:
        """Bytes of the disk cache in use."""

    @property
    def disk_evictions(self) -> int:
        """Entries that left the disk cache for others, ever."""

    def disk_bytes_of(self, digest: str) -> int:
        """Bytes of a revision in the disk cache."""

    def take_disk_changes(self) -> set[str]:
        """Digests that came into the disk cache or left it since this was last asked."""

    def load(self, source: AdapterSource, *, again: bool) -> Loaded:
        """Read, verify and pack; `again` goes to the source even when the disk has the files.

        Raises AdapterRefused (the files can never be served) or AdapterUnreadable (try again).
        """

    def close(self) -> None:
        """Give up what is held outside of this process."""


@dataclass(frozen=True, slots=True)
class SourceLoader:
    """Implements `AdapterLoader` without a disk cache."""

    reader: AdapterReader

    @property
    def disk_bytes(self) -> int:
        """See AdapterLoader."""
        return 0

    @property
    def disk_evictions(self) -> int:
        """See AdapterLoader."""
        return 0

    def disk_bytes_of(self, digest: str) -> int:
        """See AdapterLoader."""
        return 0

    def take_disk_changes(self) -> set[str]:
        """See AdapterLoader."""
        return set()

    def load(self, source: AdapterSource, *, again: bool) -> Loaded:
        """See AdapterLoader."""
        return Loaded(self.reader.read(source), Tier.SOURCE)

    def close(self) -> None:
        """See AdapterLoader."""


@dataclass(frozen=True, slots=True)
class DiskLoader:
    """Implements `AdapterLoader` with a disk cache between source and reader.

    A source is read once: the very bytes that were verified are packed, and then kept on disk.
    """

    reader: AdapterReader  # of sources
    landed: AdapterReader  # of directories inside the cache
    cache: DiskCache

    @property
    def disk_bytes(self) -> int:
        """See AdapterLoader."""
        return self.cache.num_bytes

    @property
    def disk_evictions(self) -> int:
        """See AdapterLoader."""
        return self.cache.num_evicted

    def disk_bytes_of(self, digest: str) -> int:
        """See AdapterLoader."""
        return self.cache.size_of(digest)

    def take_disk_changes(self) -> set[str]:
        """See AdapterLoader."""
        return self.cache.take_changed()

    def load(self, source: AdapterSource, *, again: bool) -> Loaded:
        """See AdapterLoader."""
        if not again:
            adapter = self._from_disk(source)
            if adapter is not None:
                return Loaded(adapter, Tier.DISK)
        return Loaded(self.reader.read(source, keep=lambda files: self._keep(source, files)), Tier.SOURCE)

    def close(self) -> None:
        """See AdapterLoader."""
        self.cache.close()

    def _from_disk(self, source: AdapterSource) -> PackedAdapter | None:
        digest = source.revision.digest
        with self.cache.reading(digest) as entry:
            if entry is None:
                return None
            try:
                return self.landed.read(_at(source, entry))
            except AdapterError as error:
                _log.warning("disk cache entry dropped", digest=digest, reason=str(error))
        self.cache.drop(digest)
        return None

    def _keep(self, source: AdapterSource, files: Mapping[str, bytes]) -> None:
        self.cache.put(source.revision.digest, files)


def _at(source: AdapterSource, directory: Path) -> AdapterSource:
    return replace(source, uri=str(directory))
