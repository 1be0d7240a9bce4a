"""A grant that one plane signs is a grant that the other accepts, and for nothing else."""

import pytest
from redis.asyncio import Redis

from control_plane.access.grants import Grant, GrantedAdapter, GrantSigner
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


@pytest.fixture
async def signer(redis: Redis) -> GrantSigner:
    return await GrantSigner.load_or_create(redis)


@pytest.fixture
def verifier(signer: GrantSigner) -> GrantVerifier:
    verifier = GrantVerifier("w1")
    verifier.replace_keys(dict(signer.public_keys()))
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


async def test_replicas_share_the_key(signer, verifier, redis) -> None:
    other = await GrantSigner.load_or_create(redis)
    assert verifier.verify(other.sign(grant())).tenant == "globex"
