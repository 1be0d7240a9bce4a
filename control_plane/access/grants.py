"""Grants: short-lived, signed permissions that a worker checks before it computes.

Owns the form of a grant; the keys are `grant_keys`', and who may do what was decided before.
Invariant: a grant names one request, one worker and one exact revision, and expires.

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
    dr   {"i": the worker's instance, "p": most tokens of prompt, "c": whether a cold load was charged for
         its slot, absent when no slot was claimed, "l": true when its load began with it}; only of a
         grant that a client gets into its own hands
"""

import json
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from control_plane.access.grant_keys import GrantKey

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
class DirectTerms:
    """What binds a grant that leaves our hands, beside what binds every one."""

    instance_id: str  # one start of the worker: it alone knows which grants were used
    max_prompt_tokens: int
    cold_load_charged: bool | None = None  # None: no slot was claimed
    loads: bool = False  # its adapter's load began when it was routed


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
    direct: DirectTerms | None = None  # None: the relay uses it


class GrantSigner:
    """Signs grants with the key that signs now."""

    def __init__(self, signing: Callable[[], GrantKey], clock: Callable[[], float] = time.time) -> None:
        self._signing = signing
        self._clock = clock

    def sign(self, grant: Grant) -> str:
        """Return the grant as a JWT; 60 microseconds. Raises StoreUnavailable when there is no key yet."""
        # Put together here: PyJWT takes as long again for what is the same in every grant, and every
        # request signs one. Workers read it with PyJWT, and the tests do.
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
        if grant.direct is not None:
            claims["dr"] = _direct_claim(grant.direct)
        key = self._signing()
        signed = f"{_header(key.key_id)}.{_encoded(claims)}"
        return f"{signed}.{_base64(key.private.sign(signed.encode()))}"


@lru_cache(maxsize=8)
def _header(key_id: str) -> str:
    return _encoded({"alg": ALGORITHM, "kid": key_id, "typ": "JWT"})


def _encoded(part: dict[str, object]) -> str:
    return _base64(json.dumps(part, separators=(",", ":")).encode())


def _base64(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def _direct_claim(terms: DirectTerms) -> dict[str, object]:
    claim: dict[str, object] = {"i": terms.instance_id, "p": terms.max_prompt_tokens}
    if terms.cold_load_charged is not None:
        claim["c"] = terms.cold_load_charged
    if terms.loads:
        claim["l"] = True
    return claim
