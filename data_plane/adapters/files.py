"""The files of an adapter directory, and nothing outside the allowed roots.

A path is made canonical, compared with the canonical roots, and then opened from the root
downwards without following links: a link that is swapped in between cannot lead out. Knows
nothing of what the bytes mean. Every file is read at most once.
"""

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from data_plane.errors import AdapterRefused, AdapterUnreadable


class AdapterDirectory:
    """A directory inside the roots, named by an absolute path or a file:// URI."""

    def __init__(self, uri: str, roots: Sequence[Path]) -> None:
        self._uri = uri
        self._roots = tuple(Path(os.path.realpath(root)) for root in roots)
        self._path = self._canonical(_path_of(uri), what=uri)

    def names(self) -> list[str]:
        """Names of its entries, sorted."""
        fd = self._open(self._path, what=self._uri, flags=os.O_DIRECTORY)
        try:
            return sorted(os.listdir(fd))
        finally:
            os.close(fd)

    def read(self, name: str, *, max_bytes: int) -> bytes:
        """The whole file; refuse one that is larger than `max_bytes` or is no regular file."""
        what = f"{self._uri}: {name}"
        # Non-blocking, because opening a pipe would wait for its writer.
        fd = self._open(self._canonical(self._path / name, what=what), what=what, flags=os.O_NONBLOCK)
        # A file object of the descriptor of a directory cannot be made: `open` raises and leaves it open.
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            raise AdapterRefused(f"{what} is not a regular file")
        with os.fdopen(fd, "rb") as file:
            if status.st_size > max_bytes:
                raise AdapterRefused(f"{what} has {status.st_size} bytes, at most {max_bytes} can be needed")
            try:
                # One more than there is, to see growth; not `max_bytes`, because a buffer of it is set aside.
                data = file.read(status.st_size + 1)
            except OSError as error:
                raise AdapterUnreadable(f"{what}: {error.strerror}") from error
        if len(data) > status.st_size:
            raise AdapterUnreadable(f"{what} grew while it was read")
        return data

    def _canonical(self, path: Path, *, what: str) -> Path:
        canonical = Path(os.path.realpath(path))
        if not any(canonical.is_relative_to(root) for root in self._roots):
            # The target is not named: where links lead is no business of the caller.
            raise AdapterRefused(f"{what} is outside of adapter_roots")
        return canonical

    def _open(self, path: Path, *, what: str, flags: int) -> int:
        root = next(root for root in self._roots if path.is_relative_to(root))
        parts = path.relative_to(root).parts
        try:
            fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
            for i, part in enumerate(parts):
                parent, last = fd, i == len(parts) - 1
                kind = flags if last else os.O_DIRECTORY
                try:
                    fd = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | kind, dir_fd=parent)
                finally:
                    os.close(parent)
        except FileNotFoundError as error:
            raise AdapterUnreadable(f"{what} does not exist") from error
        except OSError as error:
            # A link reads as ELOOP, and as ENOTDIR where a directory was asked for.
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise AdapterRefused(
                    f"{what}: a part of the path is no directory, or became a link"
                ) from error
            raise AdapterUnreadable(f"{what}: {error.strerror}") from error
        return fd


def _path_of(uri: str) -> Path:
    try:
        parts = urlsplit(uri)
    except ValueError as error:  # a bracket in what should be a host
        raise AdapterRefused(f"{uri!r} is not a path or URI: {error}") from error
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        path = unquote(parts.path)
    elif parts.scheme:
        raise AdapterRefused(f"{uri}: a worker reads directories, not {parts.scheme}:// sources")
    else:
        path = uri
    if not os.path.isabs(path) or "\0" in path:
        raise AdapterRefused(f"{uri!r} is not an absolute path")
    return Path(path)
