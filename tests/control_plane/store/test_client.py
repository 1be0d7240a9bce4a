"""The client: failures become StoreUnavailable, and only reads are repeated."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from control_plane.errors import StoreUnavailable
from control_plane.store.client import READ_RETRY_DELAYS_S, connect, dedicated


class HangUp:
    """A server that reads one command and hangs up, and counts them."""

    def __init__(self) -> None:
        self.num_commands = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(4096):
            # The client's greeting is answered; the command that follows it is not.
            greetings = data.count(b"CLIENT") + data.count(b"HELLO") + data.count(b"SELECT")
            if not greetings:
                self.num_commands += 1
                break
            writer.write(b"+OK\r\n" * greetings)
        writer.close()


@pytest.fixture
async def hang_up(tmp_path: Path) -> AsyncIterator[tuple[HangUp, Redis]]:
    hang_up = HangUp()
    path = tmp_path / "s"
    server = await asyncio.start_unix_server(hang_up.serve, path)
    client = connect(f"unix://{path}?protocol=2")
    yield hang_up, client
    await client.aclose()
    server.close()


async def test_a_command_that_changes_something_is_sent_once(hang_up: tuple[HangUp, Redis]) -> None:
    server, client = hang_up
    with pytest.raises(StoreUnavailable, match="INCR"):
        await client.incr("key")
    assert server.num_commands == 1


async def test_a_read_is_repeated(hang_up: tuple[HangUp, Redis]) -> None:
    server, client = hang_up
    with pytest.raises(StoreUnavailable, match="GET"):
        await client.get("key")
    assert server.num_commands == 1 + len(READ_RETRY_DELAYS_S)


async def test_an_unreachable_server_is_store_unavailable(tmp_path: Path) -> None:
    client = connect(f"unix://{tmp_path}/nobody.sock")
    with pytest.raises(StoreUnavailable, match="PING"):
        await client.ping()
    await client.aclose()


async def test_a_dedicated_connection_reaches_the_same_database(redis: Redis) -> None:
    await redis.set("key", "value")
    blocking = dedicated(redis)
    assert await blocking.get("key") == "value"
    await blocking.aclose()
