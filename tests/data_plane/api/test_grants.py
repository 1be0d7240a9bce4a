import time

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from data_plane.adapters.revision import AdapterSource, Revision
from data_plane.api.grants import AUDIENCE, GrantVerifier
from data_plane.errors import GrantRefused

ADAPTER = {"t": "acme", "n": "pirate", "r": 2, "d": "sha256:ab", "s": "/adapters/pirate"}


def pem(key: Ed25519PrivateKey) -> str:
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return public.decode()


KEY = Ed25519PrivateKey.generate()


def claims(**changed):
    now = time.time()
    given = {
        "jti": "r1", "sub": "acme", "wid": "w1", "base": "m", "ad": ADAPTER, "mx": 10,
        "aud": AUDIENCE, "iat": now, "exp": now + 30,
    } | changed  # fmt: skip
    return {name: value for name, value in given.items() if value is not None}


def token(key=KEY, kid="k1", algorithm="EdDSA", **changed):
    return jwt.encode(claims(**changed), key, algorithm=algorithm, headers={"kid": kid})


@pytest.fixture
def verifier():
    verifier = GrantVerifier("w1")
    verifier.replace_keys({"k1": pem(KEY)})
    return verifier


def test_a_grant_names_tenant_adapter_and_limit(verifier):
    grant = verifier.verify(token())
    assert grant.tenant == "acme"
    assert grant.max_tokens == 10
    revision = Revision(tenant="acme", name="pirate", number=2, digest="sha256:ab")
    assert grant.adapter == AdapterSource(revision=revision, uri="/adapters/pirate")


def test_a_grant_without_an_adapter_is_for_the_base_model(verifier):
    assert verifier.verify(token(ad=None)).adapter is None


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (lambda: None, "carries no grant"),
        (lambda: "", "carries no grant"),
        (lambda: "garbage", "not valid"),
        (lambda: token(exp=time.time() - 60), "expired"),
        (lambda: token(wid="w2"), "for worker 'w2'"),
        (lambda: token(aud="somebody-else"), "udience"),
        (lambda: token(kid="k2"), "does not know"),
        (lambda: token(key=Ed25519PrivateKey.generate()), "ignature"),
        (lambda: token(key="shared secret" * 4, algorithm="HS256"), "not valid"),
        *(
            (lambda name=name: token(**{name: None}), f'"{name}"')
            for name in ("jti", "sub", "wid", "base", "exp", "mx")
        ),
        (lambda: token(nbf=time.time() + 60), "not yet valid"),
        (lambda: token(iat=time.time() + 60), "not yet valid"),
        *((lambda value=value: token(mx=value), "malformed") for value in (-1, True, 1.5, "10", [10], 1e400)),
        *(
            (lambda value=value: token(ad=value), "malformed")
            for value in ("pirate", 7, [], ["t"], {}, ADAPTER | {"r": "two"}, {"t": "acme"})
        ),
        *(
            (lambda value=value: token(dr=value), "malformed")
            for value in ("i", {"i": ""}, {"i": "", "p": -1}, {"i": "", "p": "8"})
        ),
    ],
)
def test_anything_else_is_refused(verifier, bad, why):
    # Made here: a grant that is made when the tests are collected has expired when they run.
    with pytest.raises(GrantRefused, match=why):
        verifier.verify(bad())


def test_a_rotated_key_replaces_the_old_one(verifier):
    new = Ed25519PrivateKey.generate()
    verifier.replace_keys({"k2": pem(new)})
    verifier.verify(token(key=new, kid="k2"))
    with pytest.raises(GrantRefused):
        verifier.verify(token())


def test_a_grant_is_admitted_once_and_verified_as_often_as_wanted(verifier):
    grant = token()
    assert verifier.verify(grant).request_id == verifier.admit(grant).request_id == "r1"
    with pytest.raises(GrantRefused, match="used before"):
        verifier.admit(grant)
    verifier.verify(grant)


def test_a_direct_grant_is_for_one_start_of_the_worker():
    verifier = GrantVerifier("w1", "instance-1")
    verifier.replace_keys({"k1": pem(KEY)})
    given = token(dr={"i": "instance-1", "p": 8})
    direct = verifier.verify(given).direct
    assert (direct.token, direct.max_prompt_tokens) == (given, 8)
    with pytest.raises(GrantRefused, match="before its restart"):
        verifier.verify(token(dr={"i": "instance-0", "p": 8}))
