"""Real processes for tests: Valkey, control planes, workers, each to be killed and started again."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from control_plane.store.valkey import EmbeddedValkey
from protos.fleet.v1 import fleet_pb2, fleet_pb2_grpc
from protos.inference.v1 import inference_pb2 as inference
from protos.inference.v1 import inference_pb2_grpc
from protos.quota.v1 import quota_pb2_grpc
from protos.registry.v1 import registry_pb2_grpc

READY_TIMEOUT_S = 60.0
ROOT = Path(__file__).parents[2]


class Process:
    """One of our processes, with its log."""

    def __init__(self, module: str, environment: Mapping[str, str], log: Path) -> None:
        self._command = [sys.executable, "-m", module]
        self._environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", **environment}
        self._log = log
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._child = subprocess.Popen(
                self._command,
                env=self._environment,
                cwd=ROOT,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )

    @property
    def pid(self) -> int:
        """Of the process that runs now."""
        assert self._child is not None, "it was started"
        return self._child.pid

    def kill(self) -> None:
        """kill -9."""
        self.signal(signal.SIGKILL)
        self._child.wait()

    def wait(self) -> int:
        """Wait until it has ended by itself, and return its exit code."""
        return self._child.wait()

    def stop(self) -> int:
        """Ask it to end, and return its exit code."""
        if self._child.poll() is None:
            self.signal(signal.SIGTERM)
        return self._child.wait(30)

    def signal(self, number: int) -> None:
        self._child.send_signal(number)

    def check_alive(self) -> None:
        if self._child.poll() is not None:
            raise AssertionError(f"ended with {self._child.returncode}:\n{self.log}")

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")


@dataclass(slots=True)
class Answer:
    """One generation as its stream told it."""

    started: inference.Started | None = None
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finished: inference.Finished | None = None
    arrivals_s: list[float] = field(default_factory=list)


class Client:
    """Calls to one control plane with one key."""

    def __init__(self, channel: grpc.aio.Channel, key: str) -> None:
        self.metadata = (("authorization", f"Bearer {key}"),)
        self.inference = inference_pb2_grpc.InferenceStub(channel)
        self.registry = registry_pb2_grpc.AdapterRegistryStub(channel)
        self.quotas = quota_pb2_grpc.TenantQuotasStub(channel)
        self.fleet = fleet_pb2_grpc.FleetStub(channel)
        self.health = health_pb2_grpc.HealthStub(channel)

    def stream(self, model: str, prompt_ids: list[int], timeout_s: float = 60, **sampling):
        """One greedy generation's call, unless `sampling` says otherwise."""
        parameters = inference.SamplingParams(**{"temperature": 0, "ignore_eos": True} | sampling)
        request = inference.GenerateRequest(
            model=model, token_ids=inference.TokenIds(ids=prompt_ids), sampling=parameters
        )
        return self.inference.Generate(request, metadata=self.metadata, timeout=timeout_s)

    async def route(
        self, model: str, prompt_ids: list[int], max_tokens: int, **limits
    ) -> inference.RouteResponse:
        """Leave to ask a worker for one generation of this size, unless `limits` says otherwise."""
        asked = {"prompt_tokens": len(prompt_ids), "max_tokens": max_tokens} | limits
        request = inference.RouteRequest(model=model, **asked)
        return await self.inference.Route(request, metadata=self.metadata, timeout=10)

    async def generate(self, model: str, prompt_ids: list[int], **sampling) -> Answer:
        """One generation to its end."""
        return await collect(self.stream(model, prompt_ids, **sampling))

    async def workers(self) -> list[fleet_pb2.Worker]:
        answer = await self.fleet.ListWorkers(fleet_pb2.ListWorkersRequest(), metadata=self.metadata)
        return list(answer.workers)

    async def worker_until(self, reached, timeout_s: float = 10.0) -> fleet_pb2.Worker:
        """The first worker of which `reached` holds, as the control plane learns of it."""
        watch = self.fleet.WatchWorkers(
            fleet_pb2.WatchWorkersRequest(), metadata=self.metadata, timeout=timeout_s
        )
        async for event in watch:
            if reached(event.worker):
                watch.cancel()
                return event.worker
        raise AssertionError("the watch ended")


async def ask_worker(routed: inference.RouteResponse, prompt_ids: list[int], **sampling) -> Answer:
    """One greedy generation, asked of the worker itself."""
    async with grpc.aio.insecure_channel(routed.address) as channel:
        return await collect(direct_call(channel, routed, prompt_ids, **sampling))


def direct_call(channel: grpc.aio.Channel, routed: inference.RouteResponse, prompt_ids, **sampling):
    """The call of a worker with a grant."""
    parameters = inference.SamplingParams(**{"temperature": 0, "ignore_eos": True} | sampling)
    request = inference.GenerateRequest(token_ids=inference.TokenIds(ids=prompt_ids), sampling=parameters)
    metadata = (("loraplane-grant", routed.grant),)
    return inference_pb2_grpc.InferenceStub(channel).Generate(request, metadata=metadata, timeout=60)


async def collect(call, answer: Answer | None = None) -> Answer:
    """All of one stream; an answer that is given keeps what came before a failure."""
    answer = Answer() if answer is None else answer
    async for response in call:
        match response.WhichOneof("event"):
            case "started":
                answer.started = response.started
            case "delta":
                answer.text += response.delta.text
                answer.token_ids.extend(response.delta.token_ids)
                answer.arrivals_s.append(time.monotonic())
            case "finished":
                answer.finished = response.finished
    return answer


class Stack:
    """One Valkey, control planes and workers under one directory."""

    def __init__(
        self,
        directory: Path,
        *,
        model: Path,
        adapter_roots: list[Path],
        control_plane: Mapping[str, object] | None = None,
        **worker: object,
    ) -> None:
        self._directory = directory
        self._model = model
        self._roots = os.pathsep.join(str(root) for root in adapter_roots)
        self._control_settings = control_plane or {}
        self._worker_settings = worker
        self.valkey = EmbeddedValkey(directory / "valkey")
        self.control_planes: list[Process] = []
        self.workers: list[Process] = []
        self._ports = iter(range(_first_port(), 1 << 16))
        self.endpoints: list[str] = []

    def __enter__(self) -> Self:
        self.valkey.start()
        try:
            self.add_control_plane()
            self.add_worker()
            self.await_serving("readiness")
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        codes = self._stop()
        if kind is None:
            assert set(codes) <= {0, -signal.SIGKILL}, f"exit codes {codes}"

    def _stop(self) -> list[int]:
        codes = [process.stop() for process in (*self.workers, *self.control_planes)]
        self.valkey.stop()
        return codes

    def add_control_plane(self) -> Process:
        endpoint = f"127.0.0.1:{next(self._ports)}"
        environment = {
            "LORAPLANE_LISTEN": endpoint,
            "LORAPLANE_REDIS_URL": self.valkey.url,
            "LORAPLANE_STATE_DIR": str(self._directory),
            "LORAPLANE_ADAPTER_ROOTS": self._roots,
            "LORAPLANE_WORKER_LEASE_TTL_S": "2",
            "LORAPLANE_ALLOW_ADAPTER_CHANGES": "true",
            **_variables(self._control_settings),
        }
        process = Process("control_plane", environment, self._directory / f"control-plane-{endpoint}.log")
        process.start()
        self.control_planes.append(process)
        self.endpoints.append(endpoint)
        self.await_serving("liveness", endpoint)
        return process

    def add_worker(self, endpoint: str | None = None) -> Process:
        name = f"worker-{len(self.workers)}"
        environment = {
            "LORAPLANE_MODEL": str(self._model),
            "LORAPLANE_CONTROL_PLANE": endpoint or self.endpoints[0],
            "LORAPLANE_WORKER_KEY_FILE": str(self._directory / "worker.key"),
            "LORAPLANE_WORKER_ID": name,
            "LORAPLANE_ADAPTER_ROOTS": self._roots,
            **_variables(self._worker_settings),
        }
        process = Process("data_plane", environment, self._directory / f"{name}.log")
        process.start()
        self.workers.append(process)
        return process

    def await_serving(self, service: str, endpoint: str | None = None) -> None:
        """Return when a control plane's health says that `service` serves."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        with grpc.insecure_channel(endpoint or self.endpoints[0]) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            while not _serves(stub, service):
                for process in (*self.control_planes, *self.workers):
                    process.check_alive()
                assert time.monotonic() < deadline, f"no {service}: {[p.log[-2000:] for p in self.workers]}"
                time.sleep(0.05)

    @property
    def admin_key(self) -> str:
        return (self._directory / "admin.key").read_text().strip()

    @asynccontextmanager
    async def client(self, index: int = 0, key: str | None = None) -> AsyncIterator[Client]:
        """A client of one control plane; the admin's unless a key is given."""
        async with grpc.aio.insecure_channel(self.endpoints[index]) as channel:
            yield Client(channel, key or self.admin_key)


def _variables(settings: Mapping[str, object]) -> dict[str, str]:
    return {f"LORAPLANE_{key.upper()}": str(value) for key, value in settings.items()}


def _serves(stub: health_pb2_grpc.HealthStub, service: str) -> bool:
    try:
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=1)
    except grpc.RpcError:
        return False
    return answer.status == health_pb2.HealthCheckResponse.SERVING


def _first_port() -> int:
    """A start outside the ephemeral range, spread by process so that test runs do not meet."""
    return 20_000 + (os.getpid() * 37) % 8_000
