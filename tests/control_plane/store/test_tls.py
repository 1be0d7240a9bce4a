"""A Redis that is reached by TLS, with the development certificates.

The wheel's Valkey is built without TLS, so a terminator stands before it, as it does in many places.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis

from control_plane.cli.certificates import write_certificates
from control_plane.config import ControlSettings
from control_plane.errors import StoreUnavailable
from control_plane.quotas.service import Quotas
from control_plane.quotas.types import Limits, Quota
from control_plane.store.client import connect, dedicated
from control_plane.store.valkey import EmbeddedValkey


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("certificates")
    write_certificates(directory, ["localhost", "127.0.0.1"])
    return directory


@asynccontextmanager
async def terminator(valkey: EmbeddedValkey, pems: Path) -> AsyncIterator[str]:
    """A TLS server before the Valkey, which lets in who shows a certificate; its host:port."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=pems / "ca.pem")
    context.load_cert_chain(pems / "control-plane.pem", pems / "control-plane-key.pem")
    context.verify_mode = ssl.CERT_REQUIRED

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_unix_connection(valkey.url.removeprefix("unix://"))
        await asyncio.gather(_pass_on(reader, inner_writer), _pass_on(inner_reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        yield f"localhost:{server.sockets[0].getsockname()[1]}"


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while chunk := await reader.read(1 << 16):
            writer.write(chunk)
            await writer.drain()
    except ConnectionError:
        return  # the other side left in the middle of something
    finally:
        writer.close()


def url(host: str, ca: Path, shown: Path) -> str:
    return (
        f"rediss://{host}/0?ssl_ca_certs={ca / 'ca.pem'}"
        f"&ssl_certfile={shown / 'client.pem'}&ssl_keyfile={shown / 'client-key.pem'}"
    )


async def test_scripts_and_blocking_reads_work_over_mutual_tls(
    valkey: EmbeddedValkey, redis: Redis, pems: Path
) -> None:
    quota = Quota(tenant="acme", limits=Limits(requests_per_minute=7))
    async with terminator(valkey, pems) as host:
        client = connect(ControlSettings(redis_url=url(host, pems, pems)).redis_url)
        await Quotas(client, Limits(), 60.0).set(quota)
        blocking = dedicated(client)
        assert await blocking.time()
        await blocking.aclose()
        await client.aclose()
    assert await Quotas(redis, Limits(), 60.0).get("acme") == quota


@pytest.mark.parametrize("foreign", ["authority", "certificate"])
async def test_neither_side_talks_to_one_of_another_authority(
    valkey: EmbeddedValkey, pems: Path, tmp_path: Path, foreign: str
) -> None:
    write_certificates(tmp_path, ["localhost"])
    ca, shown = (tmp_path, pems) if foreign == "authority" else (pems, tmp_path)
    async with terminator(valkey, pems) as host:
        client = connect(url(host, ca, shown))
        with pytest.raises(StoreUnavailable):
            await client.set("a", "b")
        await client.aclose()
