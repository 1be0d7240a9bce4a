"""Grants: the control plane's signed word that a tenant may use one revision on this worker, now.

Knows the public keys that came with the lease; refuses everything else. The claims are those
of `control_plane.access.grants`: `jti` request id, `sub` tenant, `wid` worker, `base` base model,
`ad` the adapter {t, n, r, d, s} (tenant, name, revision, digest, source) or absent, `mx` the most
new tokens, `dr` of a grant that a client brings by itself {i, p} (instance, most tokens of prompt),
`aud`, `iat`, `exp`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jwt

from data_plane.adapters.revision import AdapterSource, Revision
from data_plane.api.spent import SpentGrants
from data_plane.errors import GrantRefused

AUDIENCE = "loraplane-worker"
METADATA = "loraplane-grant"  # of a call, where its grant is
# Clocks of two machines differ; a grant lives for seconds, so the leeway is small.
LEEWAY_S = 2.0


@dataclass(frozen=True, slots=True)
class DirectGrant:
    """What a grant says that its client brought by itself."""

    token: str  # the grant as it came, to be shown to the control plane
    max_prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Grant:
    """What a verified grant allows."""

    request_id: str
    tenant: str
    base_model: str
    adapter: AdapterSource | None
    max_tokens: int
    expires_s: float = 0.0  # Unix time
    direct: DirectGrant | None = None  # None: the control plane brought it


class GrantVerifier:
    """Verifies grants with the newest keys of the control plane."""

    def __init__(self, worker_id: str, instance_id: str = "", spent: SpentGrants | None = None) -> None:
        self._worker_id = worker_id
        self._instance_id = instance_id
        self._spent = spent or SpentGrants()
        self._keys: Mapping[str, str] = {}

    def replace_keys(self, keys: Mapping[str, str]) -> None:
        """Take key id → Ed25519 public key (PEM) from a lease."""
        self._keys = dict(keys)

    def admit(self, token: str | None) -> Grant:
        """Return what the grant allows, once; raise GrantRefused."""
        grant = self.verify(token)
        self._spent.spend(grant.request_id, grant.expires_s + LEEWAY_S)
        return grant

    def verify(self, token: str | None) -> Grant:
        """Return what the grant allows; raise GrantRefused."""
        if not token:
            raise GrantRefused("the call carries no grant: call the control plane, not the worker")
        try:
            key = self._keys[jwt.get_unverified_header(token).get("kid", "")]
            claims = jwt.decode(
                token,
                key,
                algorithms=["EdDSA"],
                audience=AUDIENCE,
                leeway=LEEWAY_S,
                options={"require": ["exp", "jti", "sub", "wid", "base", "mx"]},
            )
        except KeyError:
            raise GrantRefused("the grant is signed with a key this worker does not know") from None
        except jwt.PyJWTError as error:
            raise GrantRefused(f"the grant is not valid: {error}") from error
        if claims["wid"] != self._worker_id:
            raise GrantRefused(f"the grant is for worker {claims['wid']!r}, not {self._worker_id!r}")
        try:
            return self._grant(token, claims)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise GrantRefused("the grant is not valid: a claim is malformed") from error

    def _grant(self, token: str, claims: Mapping[str, Any]) -> Grant:
        return Grant(
            request_id=claims["jti"],
            tenant=claims["sub"],
            base_model=claims["base"],
            adapter=_adapter(claims.get("ad")),
            max_tokens=_count(claims["mx"]),
            expires_s=float(claims["exp"]),
            direct=self._direct(token, claims.get("dr")),
        )

    def _direct(self, token: str, claim: Mapping[str, object] | None) -> DirectGrant | None:
        if claim is None:
            return None
        # Which grants were used is forgotten at a restart, so one of before could be used again.
        if claim["i"] != self._instance_id:
            raise GrantRefused("the grant is for this worker before its restart: ask for another")
        return DirectGrant(token, _count(claim["p"]))


def token_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> str | None:
    """Return the grant among a call's metadata."""
    for name, value in metadata or ():
        if name == METADATA:
            return value if isinstance(value, str) else value.decode()
    return None


def _adapter(claim: Mapping[str, object] | None) -> AdapterSource | None:
    if claim is None:
        return None
    return AdapterSource(
        revision=Revision(
            tenant=str(claim["t"]), name=str(claim["n"]), number=int(str(claim["r"])), digest=str(claim["d"])
        ),
        uri=str(claim["s"]),
    )


def _count(claim: object) -> int:
    if type(claim) is not int or claim < 0:
        raise ValueError("not a count")
    return claim
