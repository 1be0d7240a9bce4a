from tests.control_plane.conftest import *  # noqa: F403 - the fixtures of a real Valkey
