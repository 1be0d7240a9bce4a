"""Adapters named in the settings: their forms, and what a start makes of them."""

import asyncio
import json
from pathlib import Path

import grpc
import jwt
import pytest
from pydantic import ValidationError
from redis.asyncio import Redis

from control_plane.config import ControlSettings
from control_plane.errors import InvalidArgument, NotFound
from control_plane.lora_modules import LoraModule, parse_lora_modules
from control_plane.registry.declared import register_declared
from control_plane.registry.service import Registry
from control_plane.registry.types import AdapterKey
from control_plane.resolvers.chain import ResolverChain
from control_plane.resolvers.filesystem import FilesystemResolver
from protos.inference.v1 import inference_pb2
from protos.registry.v1 import registry_pb2
from tests.control_plane.adapter_files import write_adapter
from tests.control_plane.replica import ready, replica

BOT = AdapterKey("acme", "bot")
PAIR = (LoraModule(BOT, "/a"), LoraModule(AdapterKey("admin", "sql"), "s3://b/p", "llama"))
SQL = {"name": "sql", "path": "s3://b/p", "base_model_name": "llama"}


def registry(redis: Redis, root: Path) -> Registry:
    return Registry(redis, ResolverChain([FilesystemResolver([root])], lambda: 0.0))


@pytest.mark.parametrize(
    "value",
    [
        f"acme/bot=/a,{json.dumps(SQL)}",
        ["acme/bot=/a", SQL],
        json.dumps(["acme/bot=/a", SQL]),
        [{"name": "acme/bot", "path": "/a"}, json.dumps(SQL)],
    ],
)
def test_every_form_is_read(value: object) -> None:
    assert parse_lora_modules(value) == PAIR
    assert ControlSettings(lora_modules=value).lora_modules == PAIR  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "value", ["bot", "=path", "A/b=/x", "[1", '{"name": "a"}', '{"name":"a","path":"b","c":1}', 7]
)
def test_any_other_form_is_refused_by_field(value: object) -> None:
    with pytest.raises(InvalidArgument, match=r"lora_modules|name|tenant"):
        parse_lora_modules(value)


def test_one_name_twice_stops_the_start() -> None:
    with pytest.raises((ValidationError, InvalidArgument), match="different names"):
        ControlSettings(lora_modules="a=/x,a=/y")  # type: ignore[arg-type]


async def test_starts_at_once_register_each_and_a_later_one_publishes_what_is_there_then(
    redis: Redis, tmp_path: Path
) -> None:
    source = write_adapter(tmp_path / "bot")
    modules = (LoraModule(BOT, str(source)),)
    replicas = [registry(redis, tmp_path) for _ in range(3)]
    await asyncio.gather(*(register_declared(one, modules) for one in replicas))
    first = await replicas[0].get(BOT)
    assert first.current_revision == 1
    await register_declared(replicas[0], modules)
    assert await replicas[0].get(BOT) == first
    write_adapter(source, fill=2.0)
    await register_declared(replicas[0], modules)
    assert (await replicas[0].get(BOT)).current_revision == 2


async def test_one_that_is_not_there_stops_the_start_by_its_source(redis: Redis, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nowhere"):
        await register_declared(registry(redis, tmp_path), (LoraModule(BOT, str(tmp_path / "nowhere")),))


async def test_they_are_served_though_nobody_may_change_adapters(redis: Redis, tmp_path: Path) -> None:
    source = write_adapter(tmp_path / "bot")
    settings = {"lora_modules": f"acme/bot={source},sql={source}", "allow_adapter_changes": False}
    async with replica(redis, tmp_path, **settings) as control, control.worker().run() as worker:
        await ready(control, "worker-0")
        for who, model in (("acme-user", "bot"), ("admin", "sql"), ("admin", "acme/bot")):
            call = control.inference.Generate(
                inference_pb2.GenerateRequest(model=model, text="x"), metadata=control.as_(who)
            )
            assert [message async for message in call]
            grant = jwt.decode(worker.metadata[-1]["loraplane-grant"], options={"verify_signature": False})
            assert grant["ad"]["n"] == model.rpartition("/")[2]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await control.registry.DeleteAdapter(
                registry_pb2.DeleteAdapterRequest(tenant="acme", name="bot"), metadata=control.as_("admin")
            )
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "allow_adapter_changes" in (caught.value.details() or "")
