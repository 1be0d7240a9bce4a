"""Scripts: sent by digest, whole only when the server does not know them."""

from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from control_plane.store.script import Script


async def test_a_script_runs_again_after_the_server_forgot_it(redis: Redis, tmp_path: Path) -> None:
    (tmp_path / "count.lua").write_text("return redis.call('INCRBY', KEYS[1], ARGV[1])")
    script = Script(tmp_path / "count.lua")
    assert await script.run(redis, ["n"], [2]) == 2
    await redis.script_flush()
    assert await script.run(redis, ["n"], [3]) == 5


async def test_earlier_files_define_functions_for_later_ones(redis: Redis, tmp_path: Path) -> None:
    (tmp_path / "double.lua").write_text("local function double(n) return 2 * n end")
    (tmp_path / "main.lua").write_text("return double(tonumber(ARGV[1]))")
    assert await Script(tmp_path / "double.lua", tmp_path / "main.lua").run(redis, [], [21]) == 42


async def test_a_read_only_script_cannot_write(redis: Redis, tmp_path: Path) -> None:
    (tmp_path / "write.lua").write_text("return redis.call('SET', KEYS[1], 1)")
    with pytest.raises(ResponseError, match="read-only"):
        await Script(tmp_path / "write.lua", read_only=True).run(redis, ["n"])
