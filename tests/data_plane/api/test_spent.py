import pytest

from data_plane.api.spent import SpentGrants
from data_plane.errors import GrantRefused


def test_a_grant_is_good_once():
    spent = SpentGrants(lambda: 100.0)
    spent.spend("r1", 130.0)
    spent.spend("r2", 130.0)
    with pytest.raises(GrantRefused, match="used before"):
        spent.spend("r1", 130.0)


def test_what_has_expired_is_forgotten():
    now_s = 100.0
    spent = SpentGrants(lambda: now_s)
    spent.spend("r1", 130.0)
    now_s = 131.0
    spent.spend("r2", 160.0)
    spent.spend("r1", 160.0)  # the verifier refuses it before, by its expiry
