"""Grants, checked as a worker would: with PyJWT and the public key alone."""

import asyncio
from dataclasses import replace

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from redis.asyncio import Redis

from control_plane.access.grants import Grant, GrantedAdapter, GrantSigner
from control_plane.errors import InvalidArgument

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


def verified(token: str, signer: GrantSigner) -> dict[str, object]:
    [(key_id, pem)] = signer.public_keys()
    assert jwt.get_unverified_header(token) == {"alg": "EdDSA", "kid": key_id, "typ": "JWT"}
    claims: dict[str, object] = jwt.decode(
        token,
        pem,
        algorithms=["EdDSA"],
        audience="loraplane-worker",
        options={"verify_exp": False, "verify_iat": False},
    )
    return claims


async def test_a_grant_has_the_documented_claims(redis: Redis) -> None:
    signer = await GrantSigner.load_or_create(redis, clock=lambda: NOW_S)
    assert verified(signer.sign(GRANT), signer) == {
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


async def test_a_grant_for_the_base_model_names_no_adapter(redis: Redis) -> None:
    signer = await GrantSigner.load_or_create(redis)
    assert "ad" not in verified(signer.sign(replace(GRANT, adapter=None)), signer)


async def test_replicas_that_start_at_once_share_one_key(redis: Redis) -> None:
    signers = await asyncio.gather(*(GrantSigner.load_or_create(redis) for _ in range(5)))
    assert len({signer.public_keys() for signer in signers}) == 1
    assert verified(signers[0].sign(GRANT), signers[4])["jti"] == "r-1"


async def test_a_grant_of_another_key_does_not_verify(redis: Redis) -> None:
    signer = await GrantSigner.load_or_create(redis)
    await redis.flushdb()
    other = await GrantSigner.load_or_create(redis)
    assert other.public_keys() != signer.public_keys()
    [(_, pem)] = signer.public_keys()
    with pytest.raises(jwt.InvalidSignatureError):
        jwt.decode(other.sign(GRANT), pem, algorithms=["EdDSA"], audience="loraplane-worker")


async def test_a_repr_does_not_show_the_private_key(redis: Redis) -> None:
    assert "PRIVATE" not in repr(await GrantSigner.load_or_create(redis))


def test_a_key_of_another_kind_is_refused() -> None:
    pem = generate_private_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with pytest.raises(InvalidArgument, match="Ed25519"):
        GrantSigner(pem.decode(), "id")
