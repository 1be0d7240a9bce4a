"""Broken adapters are refused with a message naming what and why; nobody else misses a token."""

import asyncio
import json
import os
import shutil
from pathlib import Path

import grpc
import pytest
from safetensors.torch import load_file, save_file

from protos.registry.v1 import registry_pb2 as registry
from tests.integration.stack import collect
from tests.integration.test_generation import register

pytestmark = pytest.mark.processes
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def truncated(directory: Path) -> None:
    weights = directory / WEIGHTS
    os.truncate(weights, weights.stat().st_size - 100)


def garbage(directory: Path) -> None:
    (directory / WEIGHTS).write_bytes(os.urandom(10 << 20))


def wrong_shape(directory: Path) -> None:
    tensors = load_file(directory / WEIGHTS)
    name = next(iter(tensors))
    tensors[name] = tensors[name][:, :-1].contiguous()
    save_file(tensors, directory / WEIGHTS)


def unknown_tensor(directory: Path) -> None:
    tensors = load_file(directory / WEIGHTS)
    tensors["base_model.model.model.layers.0.self_attn.x_proj.lora_A.weight"] = next(
        iter(tensors.values())
    ).clone()
    save_file(tensors, directory / WEIGHTS)


def edited(**changes: object):
    def edit(directory: Path) -> None:
        config = json.loads((directory / CONFIG).read_text())
        (directory / CONFIG).write_text(json.dumps(config | changes))

    return edit


def only_bin(directory: Path) -> None:
    (directory / WEIGHTS).rename(directory / "adapter_model.bin")


def no_config(directory: Path) -> None:
    (directory / CONFIG).unlink()


def linked_out(directory: Path) -> None:
    outside = directory.parent.parent / "outside.safetensors"
    shutil.move(directory / WEIGHTS, outside)
    (directory / WEIGHTS).symlink_to(outside)


BROKEN = {
    "truncated file": (truncated, "adapter_model.safetensors"),
    "10 MB of garbage": (garbage, "adapter_model.safetensors"),
    "wrong shape": (wrong_shape, "shape"),
    "unknown tensor": (unknown_tensor, "x_proj"),
    "rank too high": (edited(r=64), "64"),
    "wrong base model": (edited(base_model_name_or_path="other-model"), "other-model"),
    "unsupported option": (edited(init_lora_weights="pissa"), "init_lora_weights"),
    "only .bin": (only_bin, ".bin"),
    "missing config": (no_config, CONFIG),
    "symlink out of the roots": (linked_out, "outside"),
}
REFUSED = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.PERMISSION_DENIED,
}


async def attempt(client, source: Path, name: str) -> grpc.aio.AioRpcError:
    """Register, and use if that is taken: what headers cannot show, the worker refuses."""
    request = registry.RegisterAdapterRequest(tenant="acme", name=name, source=str(source))
    try:
        await client.registry.RegisterAdapter(request, metadata=client.metadata)
        await client.generate(f"acme/{name}", [1, 2], max_tokens=2)
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError(f"{source} was served")


async def test_broken_adapters_are_refused_and_other_streams_do_not_miss_a_token(stack, tiny, tmp_path):
    async with stack.client() as client:
        await register(client, tiny, 0)
        streams = [
            asyncio.create_task(collect(client.stream("acme/a0", [seed], max_tokens=200)))
            for seed in range(1, 5)
        ]
        for number, (what, (damage, named)) in enumerate(BROKEN.items()):
            source = tmp_path / "uploads" / f"broken-{number}"
            shutil.copytree(tiny.source(1), source)
            damage(source)
            error = await attempt(client, source, f"broken-{number}")
            assert error.code() in REFUSED, (what, error.details())
            assert named in error.details(), (what, error.details())
        for source in (Path("/etc"), tmp_path / "uploads/../outside"):
            error = await attempt(client, source, "outside")
            assert error.code() in REFUSED
            assert "root" in error.details()
        for seed, answer in zip(range(1, 5), await asyncio.gather(*streams), strict=True):
            assert answer.token_ids == tiny.oracle.greedy([seed], tiny.source(0), 200)


async def test_bad_requests_name_the_field_and_lose_nothing(stack, tiny):
    async with stack.client() as client:
        for fields, named in (
            ({"temperature": -1}, "sampling.temperature"),
            ({"max_tokens": 0}, "sampling.max_tokens"),
            ({"n": 99}, "sampling.n"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await client.generate("tiny-llama", [1], **fields)
            assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert named in error.value.details()
        for prompt, named in (([], "prompt"), ([100_000], "token_ids.ids[0]"), ([1] * 256, "256")):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await client.generate("tiny-llama", prompt, max_tokens=1)
            assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert named in error.value.details()
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await client.generate("acme/nobody", [1])
        assert error.value.code() == grpc.StatusCode.NOT_FOUND
        answer = await client.generate("tiny-llama", [1, 2], max_tokens=3)
        assert answer.token_ids == tiny.oracle.greedy([1, 2], None, 3)
