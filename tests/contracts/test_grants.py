"""A grant that one plane signs is a grant that the other accepts, and for nothing else."""

import pytest
from redis.asyncio import Redis

from control_plane.access.direct_grants import DirectGrants
from control_plane.access.grant_keys import GrantKeys, Rotation
from control_plane.access.grants import DirectTerms, Grant, GrantedAdapter, GrantSigner
from control_plane.errors import InvalidArgument
from data_plane.adapters.revision import Revision
from data_plane.api.grants import GrantVerifier
from data_plane.errors import GrantRefused
from tests.control_plane.conftest import *  # noqa: F403 - the fixtures of a real Valkey

ADAPTER = GrantedAdapter(tenant="acme", name="pirate", revision=3, digest="sha256:ab", source="/adapters/p")


def grant(**changed: object) -> Grant:
    given = {
        "request_id": "r1", "tenant": "globex", "worker_id": "w1", "base_model": "m", "max_tokens": 7,
        "expires_in_s": 30.0, "adapter": ADAPTER,
    }  # fmt: skip
    return Grant(**(given | changed))


async def grant_keys(redis: Redis) -> GrantKeys:
    keys = GrantKeys(redis, Rotation.every(3600.0, grant_ttl_s=30.0, worker_lease_s=3.0))
    await keys.refresh()
    return keys


@pytest.fixture
async def keys(redis: Redis) -> GrantKeys:
    return await grant_keys(redis)


@pytest.fixture
def signer(keys: GrantKeys) -> GrantSigner:
    return GrantSigner(lambda: keys.signing)


@pytest.fixture
def verifier(keys: GrantKeys) -> GrantVerifier:
    verifier = GrantVerifier("w1")
    verifier.replace_keys(dict(keys.public()))
    return verifier


async def test_a_signed_grant_says_the_same_to_the_worker(signer, verifier) -> None:
    verified = verifier.verify(signer.sign(grant()))
    assert (verified.request_id, verified.tenant, verified.max_tokens) == ("r1", "globex", 7)
    # The owner's adapter, although another tenant asks: it is shared.
    assert verified.adapter.revision == Revision("acme", "pirate", 3, "sha256:ab")
    assert verified.adapter.uri == "/adapters/p"
    assert verifier.verify(signer.sign(grant(adapter=None))).adapter is None


@pytest.mark.parametrize("changed", [{"worker_id": "w2"}, {"expires_in_s": -60.0}])
async def test_a_grant_for_another_worker_or_another_time_is_refused(signer, verifier, changed) -> None:
    with pytest.raises(GrantRefused):
        verifier.verify(signer.sign(grant(**changed)))


async def test_replicas_share_the_key(verifier, redis) -> None:
    other = await grant_keys(redis)
    assert verifier.verify(GrantSigner(lambda: other.signing).sign(grant())).tenant == "globex"


async def test_a_direct_grant_says_the_same_to_the_worker_and_to_us_when_it_comes_back(signer, keys) -> None:
    terms = DirectTerms(instance_id="i1", max_prompt_tokens=9, cold_load_charged=True, loads=True)
    signed = signer.sign(grant(direct=terms))
    verifier = GrantVerifier("w1", "i1")
    verifier.replace_keys(dict(keys.public()))
    verified = verifier.admit(signed)
    assert verified.direct.max_prompt_tokens == 9
    assert verified.direct.token == signed
    read = DirectGrants(keys.public).read(signed, worker_id="w1")
    assert read == grant(direct=terms, expires_in_s=0.0)
    assert (
        DirectGrants(keys.public).read(signer.sign(grant(direct=terms, adapter=None)), worker_id="w1").adapter
        is None
    )
    with pytest.raises(InvalidArgument, match="dr"):
        DirectGrants(keys.public).read(signer.sign(grant()), worker_id="w1")
