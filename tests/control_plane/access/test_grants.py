"""Grants, checked as a worker would: with PyJWT and the public key alone."""

from dataclasses import replace

import jwt
import pytest
from redis.asyncio import Redis

from control_plane.access.grant_keys import GrantKeys, Rotation
from control_plane.access.grants import Grant, GrantedAdapter, GrantSigner
from control_plane.errors import StoreUnavailable

NOW_S = 1_800_000_000.5
GRANT = Grant(
    request_id="r-1",
    tenant="globex",
    worker_id="worker-0",
    base_model="smollm2",
    max_tokens=64,
    expires_in_s=30.0,
    adapter=GrantedAdapter(tenant="acme", name="bot", revision=3, digest="sha256:ab", source="/adapters/bot"),
)


KEYS = Rotation.every(3600.0, grant_ttl_s=30.0, worker_lease_s=3.0)


@pytest.fixture
async def keys(redis: Redis) -> GrantKeys:
    keys = GrantKeys(redis, KEYS)
    await keys.refresh()
    return keys


@pytest.fixture
def signer(keys: GrantKeys) -> GrantSigner:
    return GrantSigner(lambda: keys.signing, clock=lambda: NOW_S)


def verified(token: str, keys: GrantKeys) -> dict[str, object]:
    [(key_id, pem)] = keys.public()
    assert jwt.get_unverified_header(token) == {"alg": "EdDSA", "kid": key_id, "typ": "JWT"}
    claims: dict[str, object] = jwt.decode(
        token,
        pem,
        algorithms=["EdDSA"],
        audience="loraplane-worker",
        options={"verify_exp": False, "verify_iat": False},
    )
    return claims


def test_a_grant_has_the_documented_claims(signer: GrantSigner, keys: GrantKeys) -> None:
    assert verified(signer.sign(GRANT), keys) == {
        "jti": "r-1",
        "iat": 1_800_000_000,
        "exp": 1_800_000_031,
        "aud": "loraplane-worker",
        "sub": "globex",
        "wid": "worker-0",
        "base": "smollm2",
        "ad": {"t": "acme", "n": "bot", "r": 3, "d": "sha256:ab", "s": "/adapters/bot"},
        "mx": 64,
    }


def test_a_grant_for_the_base_model_names_no_adapter(signer: GrantSigner, keys: GrantKeys) -> None:
    assert "ad" not in verified(signer.sign(replace(GRANT, adapter=None)), keys)


async def test_a_grant_of_another_key_does_not_verify(
    redis: Redis, signer: GrantSigner, keys: GrantKeys
) -> None:
    await redis.flushdb()
    others = GrantKeys(redis, KEYS)
    await others.refresh()
    [(_, pem)] = others.public()
    with pytest.raises(jwt.InvalidSignatureError):
        jwt.decode(signer.sign(GRANT), pem, algorithms=["EdDSA"], audience="loraplane-worker")


async def test_nothing_is_signed_before_a_key_was_read(redis: Redis) -> None:
    with pytest.raises(StoreUnavailable):
        GrantSigner(lambda: GrantKeys(redis, KEYS).signing).sign(GRANT)
