"""API keys: issued once, stored as hashes, revocable."""

from dataclasses import dataclass

import pytest
from redis.asyncio import Redis

from control_plane.access import keys as keys_module
from control_plane.access.keys import Keys
from control_plane.access.types import Identity, Role
from control_plane.errors import InvalidArgument, NameTaken, NotFound, Unauthenticated
from control_plane.store.keys import ACCESS_KEYS


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keys(redis: Redis, clock: Clock) -> Keys:
    return Keys(redis, clock=clock)


async def test_an_issued_key_authenticates_its_holder_on_every_replica(keys: Keys, redis: Redis) -> None:
    issued = await keys.create(Role.INFERENCE, tenant="acme", name="laptop")
    identity = Identity(issued.identity.key_id, "acme", Role.INFERENCE)
    assert issued.secret.startswith(f"lp_{identity.key_id}_")
    assert await keys.authenticate(issued.secret) == identity
    assert await Keys(redis).authenticate(issued.secret) == identity


async def test_neither_redis_nor_a_repr_holds_the_secret(keys: Keys, redis: Redis) -> None:
    issued = await keys.create(Role.ADMIN)
    random = issued.secret.split("_")[2]
    assert random not in str(await redis.hgetall(ACCESS_KEYS))
    assert random not in repr(issued)


@pytest.mark.parametrize(
    "change", ["lp_0000000000000000_{random}", "lp_{id}_{wrong}", "{random}", "", "lp_{id}_"]
)
async def test_any_other_secret_is_unauthenticated(keys: Keys, change: str) -> None:
    issued = await keys.create(Role.ADMIN)
    _, key_id, random = issued.secret.split("_")
    await keys.authenticate(issued.secret)
    with pytest.raises(Unauthenticated):
        await keys.authenticate(change.format(id=key_id, random=random, wrong=random[:-1] + "x"))


async def test_a_revoked_key_is_worthless_here_at_once_and_elsewhere_within_the_ttl(
    keys: Keys, redis: Redis, clock: Clock
) -> None:
    issued = await keys.create(Role.ADMIN)
    elsewhere = Keys(redis, clock=clock)
    for replica in (keys, elsewhere):
        await replica.authenticate(issued.secret)
    await keys.revoke(issued.identity.key_id)
    with pytest.raises(Unauthenticated):
        await keys.authenticate(issued.secret)
    clock.now += keys_module.CACHE_TTL_S
    with pytest.raises(Unauthenticated):
        await elsewhere.authenticate(issued.secret)
    with pytest.raises(NotFound):
        await keys.revoke(issued.identity.key_id)


async def test_a_checked_key_is_remembered_for_a_short_time(keys: Keys, redis: Redis, clock: Clock) -> None:
    issued = await keys.create(Role.ADMIN)
    await keys.authenticate(issued.secret)
    await redis.delete(ACCESS_KEYS)
    clock.now += keys_module.CACHE_TTL_S - 0.1
    await keys.authenticate(issued.secret)


async def test_a_given_secret_is_registered_once_whoever_repeats_it(keys: Keys, redis: Redis) -> None:
    secret = "lp_bootstrap_" + "s" * 40
    first = await keys.create(Role.ADMIN, secret=secret)
    assert await Keys(redis).create(Role.ADMIN, secret=secret) == first
    assert (await keys.authenticate(secret)).role is Role.ADMIN
    with pytest.raises(NameTaken, match="bootstrap"):
        await keys.create(Role.ADMIN, secret="lp_bootstrap_" + "t" * 40)
    with pytest.raises(NameTaken, match="bootstrap"):
        await keys.create(Role.WORKER, secret=secret)
    assert (await keys.authenticate(secret)).role is Role.ADMIN


async def test_a_weak_secret_is_refused_and_not_repeated_in_the_message(keys: Keys) -> None:
    with pytest.raises(InvalidArgument) as error:
        await keys.create(Role.ADMIN, secret="lp_admin_password")
    assert "password" not in str(error.value)


@pytest.mark.parametrize(
    ("role", "tenant"),
    [(Role.ADMIN, "acme"), (Role.WORKER, "acme"), (Role.INFERENCE, ""), (Role.TENANT_ADMIN, "A")],
)
async def test_a_role_has_a_tenant_or_has_none(keys: Keys, role: Role, tenant: str) -> None:
    with pytest.raises(InvalidArgument, match="tenant"):
        await keys.create(role, tenant)


async def test_keys_are_listed_with_their_names(keys: Keys) -> None:
    issued = [await keys.create(Role.TENANT_ADMIN, "acme", "one"), await keys.create(Role.WORKER, name="two")]
    listed = {info.identity: info.name for info in await keys.list()}
    assert listed == {issued[0].identity: "one", issued[1].identity: "two"}


async def test_a_rotated_key_works_for_its_grace_and_its_successor_at_once(redis: Redis) -> None:
    now = 1000.0
    keys = Keys(redis, now=lambda: now)
    old = await keys.create(Role.INFERENCE, "acme", "ci")
    new = await keys.rotate(old.identity.key_id, grace_s=60)
    assert (await keys.authenticate(new.secret)).tenant == "acme"
    assert (await keys.authenticate(old.secret)).key_id == old.identity.key_id
    now = 1060.0  # also what is cached ends
    with pytest.raises(Unauthenticated):
        await keys.authenticate(old.secret)
    await keys.authenticate(new.secret)


async def test_last_use_is_shown(redis: Redis) -> None:
    keys = Keys(redis, now=lambda: 1234.0)
    issued = await keys.create(Role.ADMIN)
    assert [info.last_use_s for info in await keys.list()] == [0.0]
    await keys.authenticate(issued.secret)
    assert [info.last_use_s for info in await keys.list()] == [1234.0]


@pytest.mark.parametrize("grace_s", [-1.0, 1e9])
async def test_a_grace_out_of_range_is_refused(redis: Redis, grace_s: float) -> None:
    keys = Keys(redis)
    issued = await keys.create(Role.ADMIN)
    with pytest.raises(InvalidArgument, match="grace_s"):
        await keys.rotate(issued.identity.key_id, grace_s)


async def test_a_description_that_is_too_long_is_refused(redis: Redis) -> None:
    with pytest.raises(InvalidArgument, match="description"):
        await Keys(redis).create(Role.ADMIN, name="x" * 257)
