"""A worker while it serves: engine thread, gRPC server and the stream to the control plane.

Owns their order of start and end. Two threads matter: the event loop (this file) and the engine's;
torch never runs on the first. A worker whose engine died serves nobody, so it ends with a failure
and is started anew.
"""

import asyncio
import contextlib
import signal
import uuid
from concurrent.futures import ThreadPoolExecutor

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from data_plane.adapters.reader import PeftReader
from data_plane.api.generations import Generations, WorkerIdentity
from data_plane.api.grants import GrantVerifier
from data_plane.api.inference import InferenceServicer
from data_plane.api.interceptors import ErrorInterceptor
from data_plane.api.mailbox import Post, Sink
from data_plane.api.prompts import Prompts
from data_plane.api.relay import RelayServicer
from data_plane.api.tls import SERVER_OPTIONS, Tls
from data_plane.config import WorkerSettings
from data_plane.direct import DirectRequests
from data_plane.engine.engine import Engine
from data_plane.engine.events import Load
from data_plane.engine.local_source import local_source
from data_plane.engine.runtime import Runtime
from data_plane.engine.thread import EngineThread
from data_plane.metrics.engine import Capacities
from data_plane.metrics.exporter import Exporter, ExporterTls
from data_plane.metrics.worker import WorkerMetrics
from data_plane.sync import convert
from data_plane.sync.client import EnginePort, SyncClient
from protos.inference.v1 import inference_pb2, inference_pb2_grpc
from protos.relay.v1 import relay_pb2, relay_pb2_grpc
from protos.sync.v1 import sync_pb2

_log = structlog.get_logger("data_plane")
SERVICE = inference_pb2.DESCRIPTOR.services_by_name["Inference"].full_name
RELAY = relay_pb2.DESCRIPTOR.services_by_name["Relay"].full_name
SHUTDOWN_GRACE_S = 10.0
SETTLE_GRACE_S = 2.0  # for the accounts of direct requests


class Health:
    """Alive while the process runs, ready while the control plane knows it."""

    def __init__(self) -> None:
        self.servicer = health.aio.HealthServicer()
        self._tasks: set[asyncio.Task[None]] = set()

    async def set(self, *services: str, serving: bool) -> None:
        """Say whether these services serve."""
        status = health_pb2.HealthCheckResponse
        for service in services:
            await self.servicer.set(service, status.SERVING if serving else status.NOT_SERVING)

    def connected(self, up: bool) -> None:
        """The stream to the control plane came up or was lost."""
        task = asyncio.create_task(self.set("readiness", SERVICE, serving=up))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class Worker:
    """One worker process's parts, and how they start and end together."""

    def __init__(
        self,
        settings: WorkerSettings,
        runtime: Runtime,
        engine: Engine,
        *,
        key: str,
        tls: Tls,
        executor: ThreadPoolExecutor | None = None,
    ) -> None:
        self._settings = settings
        self._runtime = runtime
        self._key = key
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._stopped = asyncio.Event()
        self._engine_died = False
        self._engine: EngineThread[Sink] = EngineThread(
            engine,
            Post(self._loop),
            on_death=lambda: self._loop.call_soon_threadsafe(self._die),
            executor=executor,
        )
        self._instance_id = uuid.uuid4().hex
        self._grants = GrantVerifier(settings.worker_id, self._instance_id)
        self._direct = DirectRequests()
        self._health = Health()
        self._metrics = WorkerMetrics()
        self._inference, self._relay = self._servicers()
        engine.on_adapter_load(self._metrics.loads.loaded)
        self._metrics.read_engine(
            self._engine.status,
            Capacities(
                slots=settings.max_loras if settings.enable_lora else 0,
                slot_bytes=runtime.rank_pool.num_pages * runtime.rank_pool.page_bytes,
                cpu_bytes=settings.cpu_cache_bytes,
                disk_bytes=settings.disk_cache_bytes,
                kv_blocks=runtime.num_blocks,
            ),
            model=runtime.model_name,
            block_size=runtime.block_size,
        )

    def _servicers(self) -> tuple[InferenceServicer, RelayServicer]:
        prompts = Prompts(self._runtime.tokenizer)
        identity = WorkerIdentity(
            worker_id=self._settings.worker_id,
            base_model=self._runtime.model_name,
            base_digest=self._runtime.base_digest,
            max_model_len=self._runtime.max_model_len,
        )
        generations = Generations(
            engine=self._engine,
            prompts=prompts,
            grants=self._grants,
            direct=self._direct,
            metrics=self._metrics.requests,
            identity=identity,
        )
        inference = InferenceServicer(generations, prompts, self._grants, identity)
        return inference, RelayServicer(generations, self._grants)

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT, a finished drain or the engine's death; return the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._stopped.set)
        server, port = self._server()
        exporter = self._export()
        self._engine.start()
        await preload(self._settings, self._runtime.reader, self._engine)
        await server.start()
        await self._health.set("liveness", serving=True)
        await self._health.set("readiness", SERVICE, serving=False)
        address = self._settings.worker_advertise or _at_port(self._settings.worker_listen, port)
        _log.info("worker serves", address=address, worker_id=self._settings.worker_id)
        await self._stay_connected(address, server)
        self._engine.stop()
        if exporter is not None:
            exporter.close()
        return 1 if self._engine_died else 0

    def _export(self) -> Exporter | None:
        settings = self._settings
        if not settings.metrics_listen:
            return None
        tls = ExporterTls(
            certificate=settings.tls_cert_file,
            private_key=settings.tls_key_file,
            authority=settings.tls_ca_file if settings.tls_require_client_cert else None,
        )
        exporter = Exporter.start(settings.metrics_listen, self._metrics.registry, tls)
        _log.info("metrics are served", metrics_address=exporter.address)
        return exporter

    def _die(self) -> None:
        self._engine_died = True
        self._stopped.set()

    def _server(self) -> tuple[grpc.aio.Server, int]:
        server = grpc.aio.server(interceptors=(ErrorInterceptor(),), options=SERVER_OPTIONS)
        inference_pb2_grpc.add_InferenceServicer_to_server(self._inference, server)
        relay_pb2_grpc.add_RelayServicer_to_server(self._relay, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health.servicer, server)
        names = (SERVICE, RELAY, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        return server, self._tls.listen(server, self._settings.worker_listen)

    async def _stay_connected(self, address: str, server: grpc.aio.Server) -> None:
        """Keep the stream to the control plane until the worker stops, then end the server."""
        async with self._tls.dial(self._settings.control_plane) as channel:
            client = SyncClient(
                channel=channel,
                key=self._key,
                hello=self._hello(address),
                engine=EnginePort(command=self._engine.command, status=self._engine.status),
                direct=self._direct,
                replace_grant_keys=self._grants.replace_keys,
                on_connected=self._health.connected,
                on_leave=self._stopped.set,
            )
            self._engine.on_status(lambda: self._loop.call_soon_threadsafe(client.status_changed))
            stream = asyncio.create_task(client.run())
            stopped = asyncio.create_task(self._stopped.wait())
            await asyncio.wait({stream, stopped}, return_when=asyncio.FIRST_COMPLETED)
            _log.info("worker stops")
            await self._health.set("readiness", SERVICE, serving=False)
            self._relay.leave()
            await server.stop(SHUTDOWN_GRACE_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SETTLE_GRACE_S):
                    await self._direct.idle()
            stopped.cancel()
            if stream.done():
                stream.result()  # it never ends by itself: raise what ended it
            stream.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await stream

    def _hello(self, address: str) -> sync_pb2.Hello:
        runtime = self._runtime
        return sync_pb2.Hello(
            worker_id=self._settings.worker_id,
            instance_id=self._instance_id,
            address=address,
            base_model=runtime.model_name,
            base_model_digest=runtime.base_digest,
            capacity=convert.capacity_to_proto(
                self._settings,
                slot_bytes=runtime.rank_pool.num_pages * runtime.rank_pool.page_bytes,
                num_blocks=runtime.num_blocks,
                block_size=runtime.block_size,
                max_model_len=runtime.max_model_len,
            ),
        )


async def preload(settings: WorkerSettings, reader: PeftReader, engine: EngineThread[Sink]) -> None:
    """Load the adapters that are named at start; raise WorkerError when one cannot be served."""
    for module in settings.lora_modules:
        source = await asyncio.to_thread(local_source, reader, module.name, module.path, tenant="")
        done = await asyncio.wrap_future(engine.command(Load(source)))
        _log.info("adapter loaded", name=module.name, digest=source.revision.digest, seconds=done.elapsed_s)


def _at_port(listen: str, port: int) -> str:
    return f"{listen.rpartition(':')[0]}:{port}"
