"""Disk cache: adapter files by content digest, bounded in bytes, kept over restarts.

An entry is a directory named by its digest. It is written beside the others under a passing name,
and renamed into place only once its reader has found the digest right, so a crash leaves whole
entries or none. Nothing is synced to the disk: what a power cut damaged shows when it is read,
since every read checks the digest. The longest unused entry goes first. Knows nothing of what the
bytes mean; used by loader threads alone, and by one process at a time.
"""

import fcntl
import os
import re
import shutil
import tempfile
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import IO

from data_plane.errors import InvalidRequest

LANDING = ".landing-"
LOCK = ".lock"
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


class DiskCache:
    """Directories of adapter files, together at most `max_bytes`."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._directory = directory
        self._lock = Lock()
        self._sizes: OrderedDict[str, int] = OrderedDict()  # by entry name, longest unused first
        self.num_bytes = 0  # of all entries, and of those being written; read by other threads too
        self._read: Counter[str] = Counter()  # entries being read, which are not evicted
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock_file = _lock_directory(directory)
        self._scan()

    @property
    def directory(self) -> Path:
        """Where the entries are."""
        return self._directory

    def __contains__(self, digest: str) -> bool:
        return _entry_name(digest) in self._sizes

    def __len__(self) -> int:
        return len(self._sizes)

    @contextmanager
    def reading(self, digest: str) -> Iterator[Path | None]:
        """The directory of an entry, which stays while the context is open; None when there is none."""
        name = _entry_name(digest)
        with self._lock:
            if name is None or name not in self._sizes:
                name = None
            else:
                self._sizes.move_to_end(name)
                self._read[name] += 1
        if name is None:
            yield None
            return
        try:
            yield self._directory / name
        finally:
            with self._lock:
                self._read[name] -= 1
            self._stamp(name)

    @contextmanager
    def landing(self, files: Mapping[str, bytes]) -> Iterator[Path | None]:
        """A directory with these files until the context ends or `keep` takes it over.

        None when they find no room, or when the disk does not take them.
        """
        num_bytes = sum(map(len, files.values()))
        if not self._reserve(num_bytes):
            yield None
            return
        path: Path | None = None
        try:
            path = self._write(files)
            yield path
        finally:
            with self._lock:
                self.num_bytes -= num_bytes
            if path is not None:
                shutil.rmtree(path, ignore_errors=True)  # gone already when it was kept

    def keep(self, digest: str, landing: Path) -> None:
        """What landed has this digest: make it an entry, in the place of an older one."""
        name = _entry_name(digest)
        if name is None:
            return
        num_bytes = _size(landing)
        with self._lock:
            if self._read[name]:
                return  # the same bytes are in use
            self._remove(name)
            landing.rename(self._directory / name)
            self._sizes[name] = num_bytes
            self.num_bytes += num_bytes

    def drop(self, digest: str) -> None:
        """The entry is damaged."""
        name = _entry_name(digest)
        if name is not None:
            with self._lock:
                self._remove(name)

    def close(self) -> None:
        """Let another process use the directory."""
        self._lock_file.close()

    def _scan(self) -> None:
        found: list[tuple[float, str, int]] = []
        for path in self._directory.iterdir():
            if path.name.startswith(LANDING):
                shutil.rmtree(path, ignore_errors=True)  # a process died while it wrote
            elif _DIGEST.fullmatch(f"sha256:{path.name}") and path.is_dir():
                found.append((path.stat().st_mtime, path.name, _size(path)))
        for _, name, size in sorted(found):
            self._sizes[name] = size
            self.num_bytes += size
        while self.num_bytes > self.max_bytes:  # the bound was lowered
            self._remove(next(iter(self._sizes)))

    def _reserve(self, num_bytes: int) -> bool:
        """Count bytes that are about to be written, evicting for them."""
        with self._lock:
            evictable = [name for name in self._sizes if not self._read[name]]
            fixed = self.num_bytes - sum(self._sizes[name] for name in evictable)
            if fixed + num_bytes > self.max_bytes:
                return False
            for name in evictable:
                if self.num_bytes + num_bytes <= self.max_bytes:
                    break
                self._remove(name)
            self.num_bytes += num_bytes
            return True

    def _write(self, files: Mapping[str, bytes]) -> Path | None:
        path = Path(tempfile.mkdtemp(prefix=LANDING, dir=self._directory))
        try:
            for name, data in files.items():
                (path / name).write_bytes(data)
        except OSError:  # full, or gone: the cache is an aid, its caller does without
            shutil.rmtree(path, ignore_errors=True)
            return None
        return path

    def _remove(self, name: str) -> None:
        if name in self._sizes:
            self.num_bytes -= self._sizes.pop(name)
            shutil.rmtree(self._directory / name, ignore_errors=True)

    def _stamp(self, name: str) -> None:
        """Leave the order of use to the next process."""
        path = self._directory / name
        if path.exists():
            os.utime(path)


def _entry_name(digest: str) -> str | None:
    """The hexadecimal part: the rest of the digest may come from outside and is no file name."""
    match = _DIGEST.fullmatch(digest)
    return match.group(1) if match else None


def _size(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.iterdir() if file.is_file())


def _lock_directory(directory: Path) -> IO[bytes]:
    """Take the directory for this process: two would each count the other's bytes as free."""
    file = (directory / LOCK).open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise InvalidRequest("disk_cache_dir", str(directory), "is used by another worker") from error
    return file
