"""Servers: both planes as they run, in this process: Valkey, a control plane, a real worker, a fake one.

Owns them and what the fuzzed calls are about. `probe` is a tenant that no fuzzed call names: whatever
is done to the others, its requests must be answered as they were before.
"""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from redis.asyncio import Redis

from control_plane.access.grants import Grant, GrantedAdapter, GrantSigner
from control_plane.access.types import Role
from data_plane.api.tls import Tls
from data_plane.config import WorkerSettings
from data_plane.engine.assemble import build_engine
from data_plane.engine.runtime import build_runtime
from data_plane.worker import Worker
from protos.inference.v1 import inference_pb2 as inference
from protos.inference.v1 import inference_pb2_grpc
from protos.registry.v1 import registry_pb2 as registry
from tests.control_plane.adapter_files import write_adapter
from tests.control_plane.fake_worker import FakeWorker
from tests.control_plane.replica import Replica, ready, replica
from tests.data_plane.world import sha256sum_digest, tiny_config
from tests.fuzz.credentials import Credentials
from tests.fuzz.seeds import BASE_MODEL, FAKE_MODEL, FAKE_WORKER, Seeds, seeds
from tests.fuzz.surface import Rpc, served
from tests.oracle import PeftOracle
from tests.tiny import make_adapter, make_model

REAL_WORKER = "real"
PROMPT_IDS = [5, 6, 7, 8]
NUM_TOKENS = 4
_LEASE_S = 120.0  # above any pause of a busy machine: a worker lost to one would be no finding


@dataclass
class Servers:
    """What is fuzzed."""

    control: Replica
    worker_channel: grpc.aio.Channel
    rpcs: Sequence[Rpc]
    credentials: Credentials
    sources: Sequence[str]
    expected: list[int]  # what the probe's adapter answers, by PEFT
    private: Sequence[str]  # what no error may tell

    def channel(self, rpc: Rpc) -> grpc.aio.Channel:
        """To the server of an RPC."""
        return self.control.channel if rpc.plane == "control plane" else self.worker_channel

    async def tidy(self) -> Seeds:
        """Put back what fuzzed calls may change by right; return seeds about it."""
        plane = self.control.plane
        for tenant in ("acme", "globex"):
            async for adapter in plane.registry.visible(tenant):
                if adapter.key.tenant == tenant:
                    await plane.registry.delete(adapter.key)
            await plane.quotas.delete(tenant)
            await plane.quotas.delete(tenant, "bot")
        working = {secret.split("_")[1] for secret in self.credentials.secrets}
        for info in await plane.keys.list():
            if info.identity.key_id not in working:
                await plane.keys.revoke(info.identity.key_id)
        await self._register("acme", "bot", self.sources[0], BASE_MODEL)
        await self._publish("acme", "bot", self.sources[1])
        await self._register("acme", "fake", self.sources[0], FAKE_MODEL)
        victim = await plane.keys.create(Role.INFERENCE, "acme", "victim")
        return seeds(sources=self.sources, key_id=victim.identity.key_id)

    async def probe(self) -> None:
        """Ask what has one right answer; raise AssertionError when it is another one."""
        found = await self.control.registry.GetAdapter(
            registry.GetAdapterRequest(tenant="probe", name="steady"), metadata=self._admin, timeout=30
        )
        assert found.current_revision == 1, f"the probe's adapter is at revision {found.current_revision}"
        request = inference.GenerateRequest(
            model="probe/steady",
            token_ids=inference.TokenIds(ids=PROMPT_IDS),
            sampling=inference.SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True),
        )
        call = self.control.inference.Generate(request, metadata=self._admin, timeout=30)
        told = [token_id async for answer in call for token_id in answer.delta.token_ids]
        assert told == self.expected, f"the probe was answered {told}, expected {self.expected}"
        models = await inference_pb2_grpc.InferenceStub(self.worker_channel).ListModels(
            inference.ListModelsRequest(), timeout=30
        )
        assert [model.id for model in models.models] == [BASE_MODEL]

    @property
    def _admin(self) -> tuple[tuple[str, str], ...]:
        return self.control.as_("admin")

    async def _register(self, tenant: str, name: str, source: str, base_model: str) -> None:
        request = registry.RegisterAdapterRequest(
            tenant=tenant, name=name, source=source, base_model=base_model
        )
        await self.control.registry.RegisterAdapter(request, metadata=self._admin)

    async def _publish(self, tenant: str, name: str, source: str) -> None:
        request = registry.PublishRevisionRequest(tenant=tenant, name=name, source=source)
        await self.control.registry.PublishRevision(request, metadata=self._admin)


@asynccontextmanager
async def running_servers(redis: Redis, root: Path) -> AsyncIterator[Servers]:
    """Run both planes for the time of the block."""
    roots = root / "adapters"
    base = make_model(root / "base", num_layers=1, hidden_size=32)
    steady = _adapter(roots / "probe" / "steady", base, seed=1)
    sources = [
        str(_adapter(roots / "acme" / name, base, seed=seed)) for seed, name in ((2, "one"), (3, "two"))
    ]
    # One that workers refuse, and one that the control plane does; then places that are none.
    unfit, broken = (write_adapter(roots / "acme" / name) for name in ("unfit", "broken"))
    (broken / "adapter_model.safetensors").write_bytes(b"\xff" * 100)
    sources += [
        str(unfit),
        str(broken),
        f"{sources[0]}/{'x' * 3000}",
        f"file://{roots}/acme/%00",
        f"{roots}/..",
    ]
    private = root / "private"
    private.mkdir()
    settings = {"state_dir": private, "adapter_roots": (roots,), "worker_lease_ttl_s": _LEASE_S}
    async with replica(redis, root, **settings) as control, _worker(control, base, roots, root) as channel:
        fake = FakeWorker(control.plane.address, control.keys["worker"], FAKE_WORKER, base_model=FAKE_MODEL)
        async with fake.run():
            await ready(control, FAKE_WORKER, REAL_WORKER)
            servers = Servers(
                control=control,
                worker_channel=channel,
                rpcs=[*await served("control plane", control.channel), *await served("worker", channel)],
                credentials=await _credentials(control, sources[0]),
                sources=sources,
                expected=PeftOracle(base).greedy(PROMPT_IDS, steady, NUM_TOKENS),
                private=(str(private), str(base)),
            )
            await servers._register("probe", "steady", str(steady), BASE_MODEL)
            yield servers


def _adapter(directory: Path, base: Path, *, seed: int) -> Path:
    """An adapter that does not say of which base model: it may be registered for any."""
    make_adapter(directory, base, seed=seed, rank=4)
    config = directory / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": None}))
    return directory


@asynccontextmanager
async def _worker(control: Replica, base: Path, roots: Path, root: Path) -> AsyncIterator[grpc.aio.Channel]:
    """A real worker in this process, as its `__main__` runs it."""
    config = tiny_config(
        base,
        roots,
        served_model_name=BASE_MODEL,
        max_model_len=64,
        max_loras=2,
        max_cpu_loras=8,
        cpu_kernels="torch",
    )
    given = {"worker_id": REAL_WORKER, "control_plane": control.plane.address}
    settings = WorkerSettings(**config.model_dump(), **given)
    runtime = build_runtime(settings)
    engine = build_engine(runtime, settings)
    worker = Worker(settings, runtime, engine, key=control.keys["worker"], tls=Tls())
    running = asyncio.create_task(worker.run())
    try:
        await ready(control, REAL_WORKER)
        address = control.plane.fleet.get(REAL_WORKER).address
        async with grpc.aio.insecure_channel(address) as channel:
            yield channel
    finally:
        if not running.done():
            os.kill(os.getpid(), signal.SIGTERM)  # its own way to end
        code = await running
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().remove_signal_handler(number)
        assert code == 0, f"the worker ended with {code}"


async def _credentials(control: Replica, source: str) -> Credentials:
    keys: dict[Role, dict[str, str]] = {Role.ADMIN: {"": control.keys["admin"]}}
    keys[Role.WORKER] = {"": control.keys["worker"]}
    for role, suffix in ((Role.TENANT_ADMIN, ""), (Role.INFERENCE, "-user")):
        keys[role] = {tenant: control.keys[tenant + suffix] for tenant in ("acme", "globex")}
    revoked = await control.plane.keys.create(Role.ADMIN)
    await control.plane.keys.revoke(revoked.identity.key_id)
    digest = sha256sum_digest(Path(source))
    bot = GrantedAdapter(tenant="acme", name="bot", revision=1, digest=digest, source=source)
    missing = GrantedAdapter(tenant="acme", name="no", revision=2, digest="sha256:" + "1" * 64, source="/x")
    return Credentials(
        keys=keys,
        revoked=revoked.secret,
        signer=GrantSigner(lambda: control.plane.grant_keys.signing),
        grant_key_id=control.plane.grant_keys.signing.key_id,
        grants=tuple(_grant(adapter) for adapter in (None, None, bot, missing)),
    )


def _grant(adapter: GrantedAdapter | None) -> Grant:
    given: dict[str, Any] = {"request_id": "r", "tenant": "acme", "worker_id": REAL_WORKER}
    return Grant(base_model=BASE_MODEL, max_tokens=10_000, expires_in_s=60.0, adapter=adapter, **given)
