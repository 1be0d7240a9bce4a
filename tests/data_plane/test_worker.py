"""The worker's process: what it exits with, and what it has done before it is ready."""

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from data_plane.api.tls import Tls
from data_plane.config import WorkerSettings
from data_plane.engine.assemble import build_engine
from data_plane.engine.thread import EngineThread
from data_plane.errors import AdapterRefused
from data_plane.worker import Worker, preload
from tests.data_plane.world import World, tiny_config


def settings_of(world: World, **options: object) -> WorkerSettings:
    engine = tiny_config(world.base, world.root, **options)
    # Port 9 is discard: nobody answers, and the worker goes on trying.
    return WorkerSettings(**engine.model_dump(), control_plane="127.0.0.1:9")


async def test_a_worker_whose_engine_dies_ends_with_a_failure(world: World):
    settings = settings_of(world)
    engine = build_engine(world.runtime, settings)

    def bug() -> list[object]:
        raise RuntimeError("a bug")

    engine.step = bug  # type: ignore[method-assign]
    async with asyncio.timeout(20):
        assert await Worker(settings, world.runtime, engine, key="", tls=Tls()).run() == 1


async def test_adapters_named_at_start_are_loaded_before_the_worker_is_ready(world: World):
    settings = settings_of(world, lora_modules=f"bot={world.adapters['narrow']}")
    thread: EngineThread[object] = EngineThread(build_engine(world.runtime, settings), lambda sent: None)
    thread.start()
    try:
        await preload(settings, world.runtime.reader, thread)
        (held,) = (await asyncio.wrap_future(thread.snapshot())).adapters
        assert held.revision.name == "bot"
    finally:
        await asyncio.to_thread(thread.stop)


async def test_an_adapter_that_cannot_be_loaded_stops_the_start(world: World, tmp_path: Path):
    broken = Path(shutil.copytree(world.adapters["narrow"], tmp_path / "broken"))
    (broken / "adapter_model.safetensors").write_bytes(b"no weights")
    settings = settings_of(world, lora_modules=f"bot={broken}")
    reader = replace(world.runtime.reader, roots=settings.readable_roots)
    thread: EngineThread[object] = EngineThread(build_engine(world.runtime, settings), lambda sent: None)
    with pytest.raises(AdapterRefused, match=r"adapter bot: .*safetensors"):
        await preload(settings, reader, thread)
    thread.stop()
