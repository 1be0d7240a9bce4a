import pytest

from data_plane.errors import StaleCommand
from data_plane.sync.fencing import Fence

PIRATE = ("acme", "pirate")
JSON_ONLY = ("acme", "json-only")


def test_the_same_command_twice_passes_twice():
    fence = Fence()
    fence.pass_command(PIRATE, token=3, generation=7)
    fence.pass_command(PIRATE, token=3, generation=7)
    assert fence.generation == 7


def test_a_command_of_an_older_leader_is_refused():
    fence = Fence()
    fence.raise_token(4)
    with pytest.raises(StaleCommand, match="token 3 is older than 4"):
        fence.pass_command(PIRATE, token=3, generation=7)


def test_a_command_about_an_older_state_of_its_adapter_is_refused():
    fence = Fence()
    fence.pass_command(PIRATE, token=1, generation=7)
    with pytest.raises(StaleCommand, match="acme/pirate"):
        fence.pass_command(PIRATE, token=2, generation=6)


def test_generations_of_different_adapters_do_not_fence_each_other():
    fence = Fence()
    fence.pass_command(PIRATE, token=1, generation=7)
    fence.pass_command(JSON_ONLY, token=1, generation=2)
    assert fence.generation == 7
