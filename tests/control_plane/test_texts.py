"""Texts of errors: whatever a caller sends, its error arrives."""

from pathlib import Path

import grpc
import pytest
from redis.asyncio import Redis

from control_plane.texts import MAX_BYTES, clipped
from protos.registry.v1 import registry_pb2
from tests.control_plane.replica import replica


def test_a_short_text_is_kept_whole() -> None:
    assert clipped("tenant 'acmé'") == "tenant 'acmé'"


def test_a_long_text_is_cut_between_two_characters_and_says_so() -> None:
    text = clipped("x" + "é" * MAX_BYTES)
    assert text.startswith("xéé")
    assert text.endswith(f"é… ({2 * MAX_BYTES + 1} bytes)")
    assert len(text.encode()) < MAX_BYTES + 30


def test_half_a_character_becomes_its_escape() -> None:
    assert clipped("\ud800x") == "\\ud800x"


@pytest.mark.parametrize("text", ["x" * 100_000, "🙂" * 50_000])
async def test_the_error_about_a_huge_name_reaches_the_caller(
    redis: Redis, tmp_path: Path, text: str
) -> None:
    # Trailers above 8 KiB would arrive as RESOURCE_EXHAUSTED of the client's own.
    async with replica(redis, tmp_path) as control:
        request = registry_pb2.RegisterAdapterRequest(tenant=text, name=text, source=text)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await control.registry.RegisterAdapter(request, metadata=control.as_("admin"))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
