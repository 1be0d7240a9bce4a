"""Credentials: what callers send to say who they are; most may make their call, some may not.

The control plane wants an API key of a role, a worker a grant that the control plane signed.
"""

import base64
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from random import Random

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from control_plane.access.grant_keys import GrantKey
from control_plane.access.grants import Grant, GrantSigner
from control_plane.access.types import Role
from control_plane.api.roles import ROLES, is_open
from tests.fuzz.surface import Rpc

Metadata = tuple[tuple[str, str | bytes], ...]
GRANT = "loraplane-grant"
_STRANGE_PAIRS: Metadata = (
    ("x-empty", ""),
    ("x-long", "v" * 3000),
    ("x-bin", b"\x00\xff\xfe"),
    ("grpc-trace-bin", b"\x00" * 29),
    ("traceparent", "00-zz-zz-zz"),
    ("loraplane-request-id", "../1"),
    ("authorization-bin", b"Bearer "),
)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a call: as what, and whether that may make it."""

    who: str
    metadata: Metadata
    may: bool
    grant: Grant | None = None  # to be signed for each call: a grant is good for one


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """All that callers have."""

    keys: Mapping[Role, Mapping[str, str]]  # by tenant; the secrets that work
    revoked: str
    signer: GrantSigner
    grant_key_id: str
    grants: tuple[Grant, ...]

    @property
    def secrets(self) -> tuple[str, ...]:
        """What no error may repeat."""
        return tuple(secret for by_tenant in self.keys.values() for secret in by_tenant.values())

    def draw(self, rpc: Rpc, rng: Random) -> Caller:
        """A caller of this RPC."""
        caller = self._granted(rng) if rpc.plane == "worker" else self._keyed(rpc.method, rng)
        # A worker tells everybody which model it serves.
        is_public = is_open(rpc.method) or (rpc.plane == "worker" and rpc.descriptor.name == "ListModels")
        strange = tuple(pair for pair in _STRANGE_PAIRS if rng.random() < 0.02)
        return replace(caller, metadata=(*caller.metadata, *strange), may=caller.may or is_public)

    def metadata(self, caller: Caller) -> Metadata:
        """What the caller sends with its next call."""
        if caller.grant is None:
            return caller.metadata
        grant = self.signer.sign(replace(caller.grant, request_id=uuid.uuid4().hex))
        return ((GRANT, grant), *caller.metadata)

    def _keyed(self, method: str, rng: Random) -> Caller:
        allowed = ROLES.get(method, frozenset(Role))
        if rng.random() < 0.1:
            return self._without_key(rng)
        if Role.ADMIN in allowed and rng.random() < 0.5:
            role = Role.ADMIN  # the one that gets furthest
        else:
            role = rng.choice(sorted(allowed if rng.random() < 0.9 else Role, key=lambda role: role.value))
        tenant, secret = rng.choice(sorted(self.keys[role].items()))
        return Caller(f"{role.value} {tenant}", (("authorization", f"Bearer {secret}"),), role in allowed)

    def _without_key(self, rng: Random) -> Caller:
        secret = self.keys[Role.ADMIN][""]
        headers = (
            "", "Bearer", "Bearer ", "Basic YTpi", f"bearer {secret}", f"Bearer  {secret}",
            f"Bearer {secret}x", f"Bearer {secret[:-1]}", f"Bearer {self.revoked}", "Bearer lp_x_y",
            "Bearer " + "a" * 4000,
        )  # fmt: skip
        metadata = () if rng.random() < 0.2 else (("authorization", rng.choice(headers)),)
        return Caller("stranger", metadata, may=False)

    def _granted(self, rng: Random) -> Caller:
        if rng.random() < 0.8:
            return Caller("granted", (), may=True, grant=rng.choice(self.grants))
        return Caller("stranger", rng.choice(self._bad_grants()), may=False)

    def _bad_grants(self) -> tuple[Metadata, ...]:
        grant = self.grants[0]
        good = self.signer.sign(grant)
        head, claims, signature = good.split(".")
        tokens = (
            "", "x", "a.b.c", "..", good[:-8], good + "A", f"{head}.{claims}.", f".{claims}.{signature}",
            self.signer.sign(replace(grant, expires_in_s=-3600.0)),
            self.signer.sign(replace(grant, worker_id="another")), _forger(self.grant_key_id).sign(grant),
            f"{_part({'alg': 'none', 'kid': self.grant_key_id})}.{claims}.",
            f"{_part({'alg': 'HS256', 'kid': self.grant_key_id})}.{claims}.{signature}",
            f"{_part({'alg': 'EdDSA', 'kid': ['x']})}.{claims}.{signature}",
            f"{_part({'alg': 7, 'crit': ['x']})}.{claims}.{signature}",
            f"{_part(['x'])}.{claims}.{signature}", "A" * 5000,
        )  # fmt: skip
        return ((), *(((GRANT, token),) for token in tokens))


def _forger(key_id: str) -> GrantSigner:
    """Signs in the control plane's name with a key of its own."""
    key = GrantKey(key_id, Ed25519PrivateKey.generate(), "")
    return GrantSigner(lambda: key)


def _part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()
