"""The embedded server: durable, alone on its directory, gone with its parent."""

import asyncio
import os
import select
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from control_plane.errors import InvalidArgument, StoreUnavailable
from control_plane.store import valkey as valkey_module
from control_plane.store.client import connect
from control_plane.store.valkey import EmbeddedValkey

OWNER = """
import sys
from pathlib import Path
from control_plane.store.valkey import EmbeddedValkey
server = EmbeddedValkey(Path(sys.argv[1]))
server.start()
print(server.pid, flush=True)
sys.stdin.read()
"""


async def test_acknowledged_writes_survive_kill_9_of_the_server(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path) as server:
        client = connect(server.url)
        for crash in range(6):
            pid = server.pid
            # Few writes: a server that replies before it writes does so while it syncs the first.
            # The client notices by itself that its connection to the last server is dead.
            for number in range(10):
                await client.set(f"{crash}-{number}", number)
            server.kill()
            server.start()
            assert server.pid != pid
            for _ in range(2):  # start() held the loop up: let it see that the connection was closed
                await asyncio.sleep(0)
            stored = [await client.get(f"{crash}-{number}") for number in range(10)]
            assert stored == [str(number) for number in range(10)]
        await client.aclose()


def test_start_of_a_started_server_does_nothing(valkey: EmbeddedValkey) -> None:
    pid = valkey.pid
    valkey.start()
    assert valkey.pid == pid


def test_a_second_server_on_the_directory_is_refused_by_the_first_ones_pid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(valkey_module, "LOCK_TIMEOUT_S", 0.0)
    with (
        EmbeddedValkey(tmp_path) as first,
        pytest.raises(StoreUnavailable, match=f"process {first.pid}.*{tmp_path}"),
    ):
        EmbeddedValkey(tmp_path).start()


def test_the_server_ends_when_its_parent_is_killed_and_its_directory_is_free_again(tmp_path: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout is not None
    server = os.pidfd_open(int(owner.stdout.readline()))
    owner.kill()
    owner.communicate()
    try:
        ended, _, _ = select.select([server], [], [], 10.0)  # readable once the process has ended
        assert ended
    finally:
        os.close(server)
    with EmbeddedValkey(tmp_path) as successor:
        assert successor.running


def test_a_path_too_long_for_a_socket_gets_a_short_one_that_stop_removes(tmp_path: Path) -> None:
    server = EmbeddedValkey(tmp_path / ("d" * 100))
    server.start()
    socket = Path(server.url.removeprefix("unix://"))
    assert socket.is_socket()
    assert len(str(socket)) <= valkey_module.MAX_SOCKET_PATH_BYTES
    server.stop()
    assert not socket.parent.exists()


def test_the_short_path_is_the_same_for_every_start_on_a_directory(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    assert EmbeddedValkey(deep).url == EmbeddedValkey(deep).url != EmbeddedValkey(deep / "f").url


def test_a_short_path_that_others_may_enter_is_refused(tmp_path: Path) -> None:
    server = EmbeddedValkey(tmp_path / ("d" * 60) / ("e" * 60))
    trap = Path(server.url.removeprefix("unix://")).parent
    trap.mkdir(mode=0o777)
    trap.chmod(0o777)
    try:
        with pytest.raises(StoreUnavailable, match="not a directory of ours alone"):
            server.start()
    finally:
        trap.rmdir()


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "appendonlydir").write_text("a file where the server needs a directory")
    server = EmbeddedValkey(tmp_path)
    with pytest.raises(StoreUnavailable, match=r"appendonlydir|append-only"):
        server.start()
    assert not server.running


def test_starting_a_tied_server_off_the_main_thread_is_refused(tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def start() -> None:
        try:
            EmbeddedValkey(tmp_path).start()
        except InvalidArgument as error:
            errors.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert "main thread" in str(errors[0])
