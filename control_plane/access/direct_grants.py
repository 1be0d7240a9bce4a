"""DirectGrants: grants that come back from workers, as word of what their clients did with them.

Knows the public keys alone. A worker hands back the grant itself instead of what it says, so any
replica can close the account of any direct request without having kept a record of it, and a worker can
only speak of requests that were really admitted.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jwt

from control_plane.access.grants import ALGORITHM, AUDIENCE, DirectTerms, Grant, GrantedAdapter
from control_plane.errors import InvalidArgument

PublicKeys = Callable[[], tuple[tuple[str, str], ...]]
# Workers report long after the grant has expired: a request may run for hours.
_OPTIONS: dict[str, Any] = {"verify_exp": False, "require": ["jti", "sub", "wid", "mx", "dr"]}


class DirectGrants:
    """Reads grants of direct requests."""

    def __init__(self, public_keys: PublicKeys) -> None:
        self._public_keys = public_keys

    def read(self, token: str, *, worker_id: str) -> Grant:
        """Return what was granted to a client of this worker; raise InvalidArgument for anything else."""
        try:
            key = dict(self._public_keys())[jwt.get_unverified_header(token).get("kid", "")]
            claims = jwt.decode(token, key, algorithms=[ALGORITHM], audience=AUDIENCE, options=_OPTIONS)  # type: ignore[arg-type]
        except KeyError:
            raise InvalidArgument("direct.grant", "", "is signed with a key that is not ours") from None
        except jwt.PyJWTError as error:
            raise InvalidArgument("direct.grant", "", f"is not valid: {error}") from error
        if claims["wid"] != worker_id:
            raise InvalidArgument("direct.grant", claims["wid"], f"is another worker's, not {worker_id!r}'s")
        return _grant(claims)


def _grant(claims: Mapping[str, Any]) -> Grant:
    adapter, terms = claims.get("ad"), claims["dr"]
    return Grant(
        request_id=claims["jti"],
        tenant=claims["sub"],
        worker_id=claims["wid"],
        base_model=claims["base"],
        max_tokens=claims["mx"],
        expires_in_s=0.0,  # it has been used
        adapter=None
        if adapter is None
        else GrantedAdapter(
            tenant=adapter["t"],
            name=adapter["n"],
            revision=adapter["r"],
            digest=adapter["d"],
            source=adapter["s"],
        ),
        direct=DirectTerms(
            instance_id=terms["i"],
            max_prompt_tokens=terms["p"],
            cold_load_charged=terms.get("c"),
            loads=terms.get("l", False),
        ),
    )
