"""Sources: where the files of adapters come from, as bytes.

Knows which files make an adapter and nothing of what they mean: the reader checks them. Only what
lies under the allowed roots, or in an allowed remote place, is read.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from data_plane.adapters.file_names import BIN, EXTRA_VOCABULARY, INDEX, WEIGHTS
from data_plane.adapters.peft_json import FILE_NAME
from data_plane.adapters.places import Remotes, open_files
from data_plane.adapters.revision import AdapterSource
from data_plane.errors import AdapterRefused

# A buffer of the bound is set aside while a file is read. Larger ones are read past the cache.
MAX_FILE_BYTES = 2 << 30


class FileSource(Protocol):
    """Reads every file of an adapter once. Called on loader threads."""

    def fetch(self, source: AdapterSource, *, max_bytes: int) -> dict[str, bytes] | None:
        """The files by name; None when they are no plain files or more than `max_bytes`.

        Raises AdapterUnreadable when the source does not answer.
        """


@dataclass(frozen=True, slots=True)
class DirectorySource:
    """Implements `FileSource` for directories, on a slow or vanishing file system or in a remote place."""

    roots: Sequence[Path]
    remotes: Remotes = field(default_factory=dict)

    def fetch(self, source: AdapterSource, *, max_bytes: int) -> dict[str, bytes] | None:
        """See FileSource."""
        files: dict[str, bytes] = {}
        try:
            directory = open_files(source.uri, self.roots, self.remotes)
            for name in _adapter_files(directory.names()):
                files[name] = directory.read(name, max_bytes=min(max_bytes, MAX_FILE_BYTES))
                max_bytes -= len(files[name])
        except AdapterRefused:
            return None
        return files


def _adapter_files(names: Sequence[str]) -> list[str]:
    # What makes the reader refuse the adapter must come along, or the copy would be served.
    config = [name for name in (FILE_NAME, EXTRA_VOCABULARY) if name in names]
    if WEIGHTS in names:
        return [*config, WEIGHTS]
    if INDEX in names:
        return [*config, INDEX, *(name for name in names if name.endswith(".safetensors"))]
    return [*config, *(name for name in (BIN,) if name in names)]
