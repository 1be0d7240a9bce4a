"""Roots: the directories that adapters may be read from, and files opened inside them.

Invariant: nothing outside the roots is opened, whether by path, by `..` or through a symlink.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from control_plane.errors import Refused, SourceUnavailable


class Roots:
    """Allowed directories."""

    def __init__(self, directories: Sequence[Path]) -> None:
        self._directories = tuple(Path(os.path.realpath(directory)) for directory in directories)

    def canonical(self, path: Path) -> Path:
        """Return the path without symlinks; raise Refused when it leaves the roots.

        The same answer whether it exists or not: nobody learns what lies outside.
        """
        real = Path(os.path.realpath(path))
        if not any(real.is_relative_to(root) for root in self._directories):
            raise Refused(f"{path} is outside the allowed adapter roots")
        return real

    def check_inside(self, real: Path, *parts: str) -> None:
        """Raise Refused unless a canonical path is inside these sub-directories of a root."""
        if not any(real.is_relative_to(directory) for directory in self.candidates(*parts)):
            raise Refused(f"{real} is outside of what is kept for {'/'.join(parts)!r}")

    def candidates(self, *parts: str) -> Iterator[Path]:
        """Yield the path under each root, in order."""
        for root in self._directories:
            yield root.joinpath(*parts)

    @contextmanager
    def open(self, path: Path) -> Iterator[BufferedReader]:
        """Open a regular file inside the roots; SourceUnavailable if it changes while it is open."""
        canonical = self.canonical(path)
        try:
            with open(canonical, "rb", opener=_open_regular) as file:
                before = os.fstat(file.fileno())
                yield file
                after = os.fstat(file.fileno())
        except OSError as error:
            raise SourceUnavailable(f"{path} cannot be read: {error.strerror}") from error
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise SourceUnavailable(f"{path} changed while it was read")


def _open_regular(path: str, flags: int) -> int:
    # NOFOLLOW: the path was made canonical, so a symlink was put there since.
    # NONBLOCK: opening a FIFO would wait for a writer.
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Refused(f"{path} is no regular file")
    return descriptor
