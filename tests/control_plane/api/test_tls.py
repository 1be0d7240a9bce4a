"""TLS and mutual TLS between client, control plane and worker, with the development certificates."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from pydantic import ValidationError
from redis.asyncio import Redis

from control_plane.cli.certificates import write_certificates
from control_plane.cli.connection import TlsFiles
from control_plane.config import ControlSettings
from data_plane.api.tls import SERVER_OPTIONS
from data_plane.api.tls import Tls as WorkerTls
from data_plane.config import WorkerSettings
from protos.inference.v1 import inference_pb2, inference_pb2_grpc
from protos.quota.v1 import quota_pb2, quota_pb2_grpc
from protos.relay.v1 import relay_pb2_grpc
from tests.control_plane.fake_worker import BASE_MODEL, FakeInference, FakeRelay, FakeWorker
from tests.control_plane.replica import Replica, ready, replica


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("certificates")
    write_certificates(directory, ["localhost", "127.0.0.1"])
    return directory


def settings(pems: Path, *, mutual: bool) -> dict[str, Any]:
    return {
        "tls_cert_file": pems / "control-plane.pem",
        "tls_key_file": pems / "control-plane-key.pem",
        "tls_ca_file": pems / "ca.pem",
        "tls_require_client_cert": mutual,
    }


def channel(control: Replica, pems: Path, part: str | None) -> grpc.aio.Channel:
    """A client's channel, with a certificate of a part or without one."""
    pair: tuple[bytes | None, bytes | None] = (None, None)
    if part:
        pair = ((pems / f"{part}-key.pem").read_bytes(), (pems / f"{part}.pem").read_bytes())
    credentials = grpc.ssl_channel_credentials((pems / "ca.pem").read_bytes(), *pair)
    return grpc.aio.secure_channel(control.plane.address, credentials)


class TlsWorker(FakeWorker):
    """A fake worker that talks as a real one with TLS settings does."""

    tls: WorkerTls

    async def start(self) -> None:
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        inference_pb2_grpc.add_InferenceServicer_to_server(FakeInference(self), self._server)
        relay_pb2_grpc.add_RelayServicer_to_server(FakeRelay(self), self._server)
        self.address = f"127.0.0.1:{self.tls.listen(self._server, '127.0.0.1:0')}"
        await self._server.start()
        await self.connect(self.tls.dial(self.control_plane))


def worker(control: Replica, pems: Path, *, mutual: bool) -> TlsWorker:
    made = TlsWorker(control.plane.address, control.keys["worker"])
    made.tls = WorkerTls.read(
        pems / "worker.pem", pems / "worker-key.pem", pems / "ca.pem", require_client_certificate=mutual
    )
    return made


@pytest.mark.parametrize("mutual", [False, True])
async def test_a_generation_passes_all_parts_encrypted(
    redis: Redis, tmp_path: Path, pems: Path, mutual: bool
) -> None:
    async with (
        replica(redis, tmp_path, **settings(pems, mutual=mutual)) as control,
        worker(control, pems, mutual=mutual).run(),
        channel(control, pems, "client" if mutual else None) as client,
    ):
        await ready(control, "worker-0")
        call: Any = inference_pb2_grpc.InferenceStub(client).Generate(
            inference_pb2.GenerateRequest(model=BASE_MODEL, text="hello"), metadata=control.as_("acme-user")
        )
        assert [message.WhichOneof("event") async for message in call][-1] == "finished"


async def test_a_client_without_a_certificate_is_refused_where_one_is_required(
    redis: Redis, tmp_path: Path, pems: Path
) -> None:
    async with (
        replica(redis, tmp_path, **settings(pems, mutual=True)) as control,
        channel(control, pems, None) as client,
    ):
        stub: Any = quota_pb2_grpc.TenantQuotasStub(client)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetUsage(quota_pb2.GetUsageRequest(), metadata=control.as_("acme"), timeout=3)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_worker_of_another_authority_is_not_trusted(redis: Redis, tmp_path: Path, pems: Path) -> None:
    write_certificates(tmp_path / "foreign", ["127.0.0.1"])
    async with replica(redis, tmp_path, **settings(pems, mutual=False)) as control:
        made = worker(control, pems, mutual=False)
        foreign = tmp_path / "foreign"
        made.tls = WorkerTls.read(
            foreign / "worker.pem",
            foreign / "worker-key.pem",
            pems / "ca.pem",
            require_client_certificate=False,
        )
        async with made.run(), channel(control, pems, None) as client:
            await ready(control, "worker-0")
            call: Any = inference_pb2_grpc.InferenceStub(client).Generate(
                inference_pb2.GenerateRequest(model=BASE_MODEL, text="hello"),
                metadata=control.as_("acme-user"),
                timeout=5,
            )
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                [message async for message in call]
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert not made.requests


async def test_a_worker_without_a_certificate_is_refused_where_one_is_required(
    redis: Redis, tmp_path: Path, pems: Path
) -> None:
    async with replica(redis, tmp_path, **settings(pems, mutual=True)) as control:
        made = worker(control, pems, mutual=False)
        made.tls = WorkerTls.read(None, None, pems / "ca.pem", require_client_certificate=False)
        async with made.run():
            async with asyncio.timeout(10):
                await made.left.wait()
            assert made.last_error is not None
            assert made.last_error.code() is grpc.StatusCode.UNAVAILABLE
            assert not control.plane.fleet.workers()


@pytest.mark.parametrize("mutual", [False, True])
async def test_a_client_talks_to_a_worker_by_the_name_and_certificates_that_are_asked_for(
    redis: Redis, tmp_path: Path, pems: Path, mutual: bool
) -> None:
    named = settings(pems, mutual=mutual) | {"tls_worker_name": "worker"}
    shown = TlsFiles(pems / "ca.pem", pems / "client.pem", pems / "client-key.pem")
    async with (
        replica(redis, tmp_path, **named) as control,
        worker(control, pems, mutual=mutual).run() as made,
        channel(control, pems, "client" if mutual else None) as client,
    ):
        await ready(control, "worker-0")
        stub: Any = inference_pb2_grpc.InferenceStub(client)
        routed = await stub.Route(
            inference_pb2.RouteRequest(model=BASE_MODEL, prompt_tokens=5), metadata=control.as_("acme-user")
        )
        assert routed.tls_server_name == "worker"
        events = await asyncio.to_thread(direct, shown, routed.address, routed.tls_server_name, routed.grant)
        assert events[-1] == "finished"
        refused = [(shown, "elsewhere")] + ([(TlsFiles(pems / "ca.pem"), "worker")] if mutual else [])
        for files, name in refused:
            with pytest.raises(grpc.RpcError) as caught:
                await asyncio.to_thread(direct, files, routed.address, name, routed.grant)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]
        assert len(made.requests) == 1


def direct(files: TlsFiles, address: str, name: str, grant: str) -> list[str]:
    """A generation of a client that goes to the worker by itself, as `loraplane generate --direct` does."""
    with files.channel(address, name) as opened:
        call = inference_pb2_grpc.InferenceStub(opened).Generate(  # type: ignore[no-untyped-call]
            inference_pb2.GenerateRequest(text="hello"), metadata=(("loraplane-grant", grant),), timeout=5
        )
        return [message.WhichOneof("event") for message in call]


def test_private_keys_are_readable_by_their_owner_alone(pems: Path) -> None:
    keys = list(pems.glob("*-key.pem"))
    assert len(keys) == 4
    assert {key.stat().st_mode & 0o777 for key in keys} == {0o600}


@pytest.mark.parametrize(
    "fields",
    [
        {"listen": "0.0.0.0:1"},
        {"tls_cert_file": "a.pem"},
        {"tls_require_client_cert": True},
    ],
)
def test_a_control_plane_does_not_start_in_plain_text_or_with_half_of_tls(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(fields))):
        ControlSettings(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"worker_listen": "0.0.0.0:1"},
        {"control_plane": "10.0.0.1:8470"},
        {"tls_key_file": "a.pem"},
        {"tls_require_client_cert": True},
    ],
)
def test_a_worker_does_not_start_in_plain_text_or_with_half_of_tls(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(fields))):
        WorkerSettings(model=Path("m"), **fields)


def test_plain_text_beyond_the_machine_needs_a_word_of_consent() -> None:
    WorkerSettings(
        model=Path("m"), worker_listen="0.0.0.0:1", control_plane="10.0.0.1:8470", allow_insecure=True
    )
