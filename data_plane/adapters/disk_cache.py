"""Disk cache: adapter files by content digest, bounded in bytes, kept over restarts.

An entry is a directory named by its digest, of files whose digest was found right. It is written
beside the others under a passing name and renamed into place, so a crash leaves whole entries or
none. Nothing is synced to the disk: what a power cut damaged shows when it is read,
since every read checks the digest. The longest unused entry goes first. Knows nothing of what the
bytes mean; changed by loader threads alone, and used by one process at a time. The step loop asks
for sizes and changes, and never waits for the lock: it is held while files are removed.
"""

import fcntl
import os
import re
import shutil
import tempfile
from collections import Counter, OrderedDict, deque
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
        self.num_evicted = 0  # entries, ever
        self._read: Counter[str] = Counter()  # entries being read, which are not evicted
        self._changed: deque[str] = deque()  # names of entries that came or left
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

    def size_of(self, digest: str) -> int:
        """Bytes of an entry; 0 when there is none. Any thread."""
        return self._sizes.get(_entry_name(digest) or "", 0)

    def take_changed(self) -> set[str]:
        """Digests whose entries came or left since this was last asked. One thread, any."""
        return {f"sha256:{self._changed.popleft()}" for _ in range(len(self._changed))}

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

    def put(self, digest: str, files: Mapping[str, bytes]) -> bool:
        """Keep files of this digest, in the place of an older entry, evicting others for them.

        False when they find no room, or when the disk does not take them.
        """
        name = _entry_name(digest)
        num_bytes = sum(map(len, files.values()))
        if name is None or not self._reserve(num_bytes):
            return False
        landing = self._write(files)
        with self._lock:
            self.num_bytes -= num_bytes
            kept = landing is not None and self._enter(name, landing, num_bytes)
        if landing is not None:
            shutil.rmtree(landing, ignore_errors=True)  # gone already when it was kept
        return kept

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
                self.num_evicted += 1
            self.num_bytes += num_bytes
            return True

    def _write(self, files: Mapping[str, bytes]) -> Path | None:
        path: Path | None = None
        try:
            path = Path(tempfile.mkdtemp(prefix=LANDING, dir=self._directory))
            for name, data in files.items():
                (path / name).write_bytes(data)
        except OSError:  # full, or gone: the cache is an aid, its caller does without
            if path is not None:
                shutil.rmtree(path, ignore_errors=True)
            return None
        return path

    def _enter(self, name: str, landing: Path, num_bytes: int) -> bool:
        if self._read[name]:
            return True  # the same bytes are in use
        self._remove(name)
        try:
            landing.rename(self._directory / name)
        except OSError:
            return False
        self._sizes[name] = num_bytes
        self.num_bytes += num_bytes
        self._changed.append(name)
        return True

    def _remove(self, name: str) -> None:
        if name in self._sizes:
            self.num_bytes -= self._sizes.pop(name)
            self._changed.append(name)
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
