"""An adapter directory as a revision, for those who have no control plane to ask.

The digest is of the files as they are now; the engine reads them again and finds a change meanwhile.
"""

from pathlib import Path

from data_plane.adapters.reader import PeftReader
from data_plane.adapters.revision import AdapterSource, Revision
from data_plane.errors import AdapterRefused, AdapterUnreadable


def local_source(reader: PeftReader, name: str, path: Path, *, tenant: str, number: int = 1) -> AdapterSource:
    """The adapter in a directory; raise AdapterRefused or AdapterUnreadable when it cannot be served."""
    uri = str(path.absolute())
    try:
        digest, _ = reader.read_directory(uri)
    except (AdapterRefused, AdapterUnreadable) as error:
        raise type(error)(f"adapter {name}: {error}") from error
    return AdapterSource(Revision(tenant, name, number, digest), uri)
