"""Grants: short-lived, signed permissions that a worker checks before it computes.

Owns the signing key and the form of a grant; who may do what was decided before. Invariant: a
grant names one request, one worker and one exact revision, and expires.

A grant is a JWT (RFC 7519) signed with Ed25519 (`alg` EdDSA; `kid` in the header names the public
key that the worker got with its lease). Claims:

    jti  request id
    iat  issued, exp  expires: Unix time in seconds
    aud  "loraplane-worker"
    sub  tenant that asked
    wid  worker id; no other worker may accept it
    base base model's name
    ad   {"t": owner, "n": name, "r": revision, "d": digest, "s": source URI}; absent: base model only
    mx   most new tokens, over all choices
"""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from redis.asyncio import Redis

from control_plane.errors import InvalidArgument, StoreUnavailable
from control_plane.store import keys

AUDIENCE = "loraplane-worker"
ALGORITHM = "EdDSA"


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantedAdapter:
    """The one revision that a grant allows."""

    tenant: str  # its owner; the asking tenant may be another that it is shared with
    name: str
    revision: int
    digest: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What one request may do on one worker."""

    request_id: str
    tenant: str
    worker_id: str
    base_model: str
    max_tokens: int
    expires_in_s: float
    adapter: GrantedAdapter | None = None  # None: the base model


class GrantSigner:
    """Signs grants with one private key, which all replicas share."""

    def __init__(self, private_key_pem: str, key_id: str, clock: Callable[[], float] = time.time) -> None:
        key = load_pem_private_key(private_key_pem.encode(), password=None)
        if not isinstance(key, Ed25519PrivateKey):
            raise InvalidArgument("private_key_pem", type(key).__name__, "must be an Ed25519 key")
        self._key = key
        self._key_id = key_id
        self._clock = clock

    def __repr__(self) -> str:
        return f"GrantSigner(key_id={self._key_id!r}, private_key='***')"

    @classmethod
    async def load_or_create(cls, redis: Redis, clock: Callable[[], float] = time.time) -> Self:
        """Return a signer with the key in Redis; the first replica puts one there.

        The private key is as safe as Redis is: whoever can write there can register adapters,
        limits and API keys anyway.
        """
        key = Ed25519PrivateKey.generate()
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        fresh = json.dumps({"key_id": _key_id(key), "private_key_pem": pem})
        await redis.set(keys.ACCESS_GRANT_KEY, fresh, nx=True)  # of replicas that race, one wins
        stored: Any = await redis.get(keys.ACCESS_GRANT_KEY)
        if stored is None:
            raise StoreUnavailable("the key that signs grants was removed while it was read")
        record = json.loads(stored)
        return cls(record["private_key_pem"], record["key_id"], clock)

    def sign(self, grant: Grant) -> str:
        """Return the grant as a JWT; 60 microseconds."""
        now_s = self._clock()
        claims: dict[str, object] = {
            "jti": grant.request_id,
            "iat": int(now_s),
            "exp": int(now_s + grant.expires_in_s) + 1,  # whole seconds, never less than asked for
            "aud": AUDIENCE,
            "sub": grant.tenant,
            "wid": grant.worker_id,
            "base": grant.base_model,
            "mx": grant.max_tokens,
        }
        if grant.adapter is not None:
            claims["ad"] = {
                "t": grant.adapter.tenant,
                "n": grant.adapter.name,
                "r": grant.adapter.revision,
                "d": grant.adapter.digest,
                "s": grant.adapter.source,
            }
        return jwt.encode(claims, self._key, algorithm=ALGORITHM, headers={"kid": self._key_id})

    def public_keys(self) -> tuple[tuple[str, str], ...]:
        """Return key id and PEM of each public key that verifies grants, newest first."""
        pem = self._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return ((self._key_id, pem.decode()),)


def _key_id(key: Ed25519PrivateKey) -> str:
    """Return a name for the key that follows from it."""
    public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return hashlib.sha256(public).hexdigest()[:16]
