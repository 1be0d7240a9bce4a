"""A source that takes its time: an `AdapterReader` before the real one, as far storage would be."""

from dataclasses import dataclass, field
from threading import Event

from data_plane.adapters.revision import AdapterSource
from data_plane.adapters.types import AdapterReader, PackedAdapter


@dataclass(frozen=True)
class SlowReader:
    """Waits on the loader's thread, as for bytes from a network, then reads."""

    reader: AdapterReader
    delays_s: dict[str, float] = field(default_factory=dict)  # by digest; others at once

    def read(self, source: AdapterSource) -> PackedAdapter:
        """See `AdapterReader`."""
        Event().wait(self.delays_s.get(source.revision.digest, 0.0))
        return self.reader.read(source)
