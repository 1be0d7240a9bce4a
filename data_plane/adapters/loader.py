"""Loader: packed weights for a revision, from the disk cache where it has them, else from its source.

Runs on loader threads. A disk entry is believed only after its digest was checked; a damaged one is
dropped and the source is read instead. A disk that fails or is full costs speed, never an answer.
"""

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import structlog

from data_plane.adapters.disk_cache import DiskCache
from data_plane.adapters.revision import AdapterSource, Tier
from data_plane.adapters.sources import FileSource
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

    def load(self, source: AdapterSource, *, again: bool) -> Loaded:
        """See AdapterLoader."""
        return Loaded(self.reader.read(source), Tier.SOURCE)

    def close(self) -> None:
        """See AdapterLoader."""


@dataclass(frozen=True, slots=True)
class DiskLoader:
    """Implements `AdapterLoader` with a disk cache between source and reader.

    What comes from the source lands on disk first and is read from there, so that one pass verifies
    both the weights that are served and the entry that is kept.
    """

    reader: AdapterReader  # of sources
    landed: AdapterReader  # of directories inside the cache
    files: FileSource
    cache: DiskCache

    @property
    def disk_bytes(self) -> int:
        """See AdapterLoader."""
        return self.cache.num_bytes

    def load(self, source: AdapterSource, *, again: bool) -> Loaded:
        """See AdapterLoader."""
        if not again:
            adapter = self._from_disk(source)
            if adapter is not None:
                return Loaded(adapter, Tier.DISK)
        return Loaded(self._from_source(source), Tier.SOURCE)

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

    def _from_source(self, source: AdapterSource) -> PackedAdapter:
        files = self.files.fetch(source, max_bytes=self.cache.max_bytes)
        if files is not None:
            with self.cache.landing(files) as landing:
                if landing is not None:
                    # A refusal here names the landing: the reader of the source says it better below.
                    with suppress(AdapterError):
                        adapter = self.landed.read(_at(source, landing))
                        self.cache.keep(source.revision.digest, landing)
                        return adapter
        return self.reader.read(source)


def _at(source: AdapterSource, directory: Path) -> AdapterSource:
    return replace(source, uri=str(directory))
