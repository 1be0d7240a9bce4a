"""Keys of grants over their life: announced, signing, accepted, gone; with times of milliseconds."""

import asyncio
import json

import jwt
import pytest
from redis.asyncio import Redis

from control_plane.access.grant_keys import GrantKeys, Rotation
from control_plane.access.grants import Grant, GrantSigner
from control_plane.store import keys as store
from data_plane.api.grants import GrantVerifier
from data_plane.errors import GrantRefused

LONG = 1000.0
STEADY = Rotation(life_s=LONG, announce_s=1.0, accept_s=1.0, refresh_s=1.0)
GRANT = Grant(request_id="r", tenant="acme", worker_id="w", base_model="m", max_tokens=1, expires_in_s=3600.0)


async def replica(redis: Redis, rotation: Rotation = STEADY) -> GrantKeys:
    keys = GrantKeys(redis, rotation)
    await keys.refresh()
    return keys


def signed(keys: GrantKeys) -> str:
    return GrantSigner(lambda: keys.signing).sign(GRANT)


def worker(*replicas: GrantKeys) -> GrantVerifier:
    """A worker that got its lease from these replicas, one after the other."""
    verifier = GrantVerifier("w")
    for keys in replicas:
        verifier.replace_keys(dict(keys.public()))
    return verifier


async def age(redis: Redis, seconds: float) -> None:
    """Let time pass for the keys."""
    for member, _ in await redis.zrange(store.ACCESS_GRANT_KEYS, 0, -1, withscores=True):
        await redis.zincrby(store.ACCESS_GRANT_KEYS, -round(1000 * seconds), member)


async def test_replicas_that_start_at_once_share_one_key(redis: Redis) -> None:
    replicas = await asyncio.gather(*(replica(redis) for _ in range(5)))
    assert len({keys.public() for keys in replicas}) == 1
    assert worker(replicas[0]).verify(signed(replicas[4])).tenant == "acme"


async def test_a_key_is_known_to_workers_before_it_signs_and_the_old_one_dies_after_it(redis: Redis) -> None:
    keys = await replica(redis)
    first, old_grant = keys.signing.key_id, signed(keys)

    await age(redis, LONG - 0.5)  # half a second of its life is left: the next one is announced
    await keys.refresh()
    [_, second] = [key_id for key_id, _ in keys.public()]
    assert keys.signing.key_id == first

    await age(redis, 1.1)  # the next one signs, the old one is accepted
    await keys.refresh()
    assert keys.signing.key_id == second
    assert {key_id for key_id, _ in keys.public()} == {first, second}
    assert worker(keys).verify(old_grant).tenant == "acme"
    assert worker(keys).verify(signed(keys)).tenant == "acme"

    await age(redis, 1.1)  # no grant of the old one lives
    await keys.refresh()
    assert [key_id for key_id, _ in keys.public()] == [second]
    with pytest.raises(GrantRefused, match="key this worker does not know"):
        worker(keys).verify(old_grant)


async def test_replicas_that_look_at_different_times_sign_only_what_every_worker_accepts(
    redis: Redis,
) -> None:
    late = await replica(redis)
    early = await replica(redis)
    for step in range(12):  # four lives, a third of a life at a time; `late` skips every other look
        await age(redis, LONG / 3)
        await early.refresh()
        if step % 2:
            await late.refresh()
            await age(redis, 0.5)  # within the announcement
            await early.refresh()
        assert worker(early).verify(signed(early)).tenant == "acme"
    await late.refresh()
    assert worker(late).verify(signed(early)).tenant == "acme"
    assert worker(early).verify(signed(late)).tenant == "acme"


async def test_replicas_that_look_at_once_make_one_next_key(redis: Redis) -> None:
    replicas = [await replica(redis) for _ in range(4)]
    await age(redis, LONG)
    await asyncio.gather(*(keys.refresh() for keys in replicas))
    assert len({keys.public() for keys in replicas}) == 1
    assert len(replicas[0].public()) == 2


async def test_after_a_long_pause_the_old_key_signs_until_the_next_was_announced(redis: Redis) -> None:
    old = (await replica(redis)).signing
    await age(redis, 10 * LONG)
    keys = await replica(redis)
    assert keys.signing == old or keys.signing.key_id == old.key_id
    assert len(keys.public()) == 2


async def test_the_loop_rotates_by_itself_and_survives_what_redis_does(redis: Redis) -> None:
    keys = await replica(redis, Rotation(life_s=0.2, announce_s=0.1, accept_s=0.05, refresh_s=0.02))
    seen = {keys.signing.key_id}
    running = asyncio.create_task(keys.run())
    async with asyncio.timeout(5):
        while len(seen) < 3:
            await asyncio.sleep(0.01)
            seen.add(keys.signing.key_id)
            assert worker(keys).verify(signed(keys)).tenant == "acme"
    running.cancel()
    assert len(keys.public()) <= 3


async def test_a_dead_key_is_known_for_ten_lives_and_then_gone_from_redis(redis: Redis) -> None:
    keys = await replica(redis)
    first = keys.signing.key_id
    for life in range(14):
        if life <= 10:
            assert first in dict(keys.known())
        assert len(await redis.zrange(store.ACCESS_GRANT_KEYS, 0, -1)) <= 13
        await age(redis, LONG)
        await keys.refresh()
    assert first not in dict(keys.known())
    assert first not in dict(keys.public())


async def test_neither_a_repr_nor_a_lease_shows_a_private_key(redis: Redis) -> None:
    keys = await replica(redis)
    [member] = await redis.zrange(store.ACCESS_GRANT_KEYS, 0, -1)
    secret = member.partition(" ")[2]
    assert secret not in repr(keys.signing)
    assert "PRIVATE" not in json.dumps(keys.public())
    assert jwt.get_unverified_header(signed(keys))["kid"] == keys.signing.key_id


def test_times_follow_from_a_keys_life() -> None:
    rotation = Rotation.every(86_400.0, grant_ttl_s=30.0, worker_lease_s=3.0)
    assert (rotation.refresh_s, rotation.announce_s, rotation.accept_s) == (5.0, 13.0, 40.0)
    assert Rotation.every(6.0, grant_ttl_s=1.0, worker_lease_s=0.6).announce_s < 6.0
