"""A worker process: settings → runtime → engine thread → gRPC server and sync stream.

Two threads matter: the event loop (this file) and the engine's. torch never runs on the first.
"""

import data_plane.openmp  # isort: skip  # noqa: F401 - before anything imports torch

import asyncio
import contextlib
import signal
import sys
import uuid
from pathlib import Path

import grpc
import structlog
import uvloop
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from pydantic import ValidationError

from data_plane.adapters.reader import PeftReader
from data_plane.api.grants import GrantVerifier
from data_plane.api.inference import InferenceServicer, WorkerIdentity
from data_plane.api.interceptors import ErrorInterceptor
from data_plane.api.mailbox import Mailbox, Post
from data_plane.api.prompts import Prompts
from data_plane.api.tls import SERVER_OPTIONS, Tls
from data_plane.config import WorkerSettings
from data_plane.engine.assemble import build_engine
from data_plane.engine.engine import Engine
from data_plane.engine.events import Load
from data_plane.engine.local_source import local_source
from data_plane.engine.runtime import Runtime, build_runtime
from data_plane.engine.start_report import log_start
from data_plane.engine.thread import EngineThread
from data_plane.errors import WorkerError
from data_plane.sync import convert
from data_plane.sync.client import EnginePort, SyncClient
from protos.inference.v1 import inference_pb2, inference_pb2_grpc
from protos.sync.v1 import sync_pb2

_log = structlog.get_logger("data_plane")
SERVICE = inference_pb2.DESCRIPTOR.services_by_name["Inference"].full_name
SHUTDOWN_GRACE_S = 10.0


class Health:
    """The worker's health: alive while it runs, ready while the control plane knows it."""

    def __init__(self) -> None:
        self.servicer = health.aio.HealthServicer()

    async def set(self, *services: str, serving: bool) -> None:
        """Say whether these services serve."""
        status = health_pb2.HealthCheckResponse
        for service in services:
            await self.servicer.set(service, status.SERVING if serving else status.NOT_SERVING)


async def serve(settings: WorkerSettings, runtime: Runtime, engine_core: Engine, key: str, tls: Tls) -> int:
    """Serve until SIGTERM or SIGINT, then finish what runs; or until the engine dies. The exit code."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)

    died = asyncio.Event()

    def on_death() -> None:
        loop.call_soon_threadsafe(died.set)
        loop.call_soon_threadsafe(stopped.set)

    engine: EngineThread[Mailbox] = EngineThread(engine_core, Post(loop), on_death=on_death)
    grants = GrantVerifier(settings.worker_id)
    identity = WorkerIdentity(
        worker_id=settings.worker_id,
        base_model=runtime.model_name,
        base_digest=runtime.base_digest,
        max_model_len=runtime.max_model_len,
    )
    readiness = Health()
    server = grpc.aio.server(interceptors=(ErrorInterceptor(),), options=SERVER_OPTIONS)
    servicer = InferenceServicer(
        engine=engine, prompts=Prompts(runtime.tokenizer), grants=grants, identity=identity
    )
    inference_pb2_grpc.add_InferenceServicer_to_server(servicer, server)
    health_pb2_grpc.add_HealthServicer_to_server(readiness.servicer, server)
    reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    port = tls.listen(server, settings.worker_listen)
    address = settings.worker_advertise or f"{settings.worker_listen.rsplit(':', 1)[0]}:{port}"

    engine.start()
    await preload(settings, runtime.reader, engine)
    await server.start()
    await readiness.set("liveness", serving=True)
    await readiness.set("readiness", SERVICE, serving=False)
    _log.info("worker serves", address=address, worker_id=settings.worker_id)

    tasks: set[asyncio.Task[None]] = set()

    def connected(up: bool) -> None:
        task = loop.create_task(readiness.set("readiness", SERVICE, serving=up))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async with tls.dial(settings.control_plane) as channel:
        client = SyncClient(
            channel=channel,
            key=key,
            hello=_hello(settings, runtime, address),
            engine=EnginePort(command=engine.command, status=engine.status),
            replace_grant_keys=grants.replace_keys,
            on_connected=connected,
        )
        engine.on_status(lambda: loop.call_soon_threadsafe(client.status_changed))
        stream = asyncio.create_task(client.run())
        waiter = asyncio.create_task(stopped.wait())
        await asyncio.wait({stream, waiter}, return_when=asyncio.FIRST_COMPLETED)
        _log.info("worker stops")
        await readiness.set("readiness", SERVICE, serving=False)
        await server.stop(SHUTDOWN_GRACE_S)
        waiter.cancel()
        if stream.done():
            stream.result()  # it never ends by itself: raise what ended it
        stream.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await stream
    engine.stop()
    # Without its engine a worker serves nobody: a non-zero exit has it started anew.
    return 1 if died.is_set() else 0


async def preload(settings: WorkerSettings, reader: PeftReader, engine: EngineThread[Mailbox]) -> None:
    """Load the adapters that are named at start; raise WorkerError when one cannot be served."""
    for module in settings.lora_modules:
        source = await asyncio.to_thread(local_source, reader, module.name, module.path, tenant="")
        done = await asyncio.wrap_future(engine.command(Load(source)))
        _log.info("adapter loaded", name=module.name, digest=source.revision.digest, seconds=done.elapsed_s)


def _hello(settings: WorkerSettings, runtime: Runtime, address: str) -> sync_pb2.Hello:
    return sync_pb2.Hello(
        worker_id=settings.worker_id,
        instance_id=uuid.uuid4().hex,
        address=address,
        base_model=runtime.model_name,
        base_model_digest=runtime.base_digest,
        capacity=convert.capacity_to_proto(
            settings,
            slot_bytes=runtime.rank_pool.num_pages * runtime.rank_pool.page_bytes,
            num_blocks=runtime.num_blocks,
            max_model_len=runtime.max_model_len,
        ),
    )


def _read_key(path: Path | None) -> str:
    return path.read_text().strip() if path else ""


def _read_tls(settings: WorkerSettings) -> Tls:
    return Tls.read(
        settings.tls_cert_file,
        settings.tls_key_file,
        settings.tls_ca_file,
        require_client_certificate=settings.tls_require_client_cert,
    )


def main() -> int:
    """Start a worker; return the exit code. A bad setting is one message and exit code 2."""
    try:
        settings = WorkerSettings(_cli_parse_args=True)  # type: ignore[call-arg]
        key = _read_key(settings.worker_key_file)
        tls = _read_tls(settings)
        runtime = build_runtime(settings)
        engine = build_engine(runtime, settings)
        log_start(settings, runtime)
    except (ValidationError, WorkerError, OSError) as error:
        return _refuse_start(error)
    try:
        return uvloop.run(serve(settings, runtime, engine, key, tls))
    except WorkerError as error:  # of an adapter that is named at start
        return _refuse_start(error)


def _refuse_start(error: Exception) -> int:
    print(f"worker does not start: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
