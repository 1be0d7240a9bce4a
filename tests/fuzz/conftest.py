import logging
from collections.abc import Iterator

import pytest
import structlog

from tests.control_plane.conftest import *  # noqa: F403 - the fixtures of a real Valkey


@pytest.fixture(autouse=True)
def only_errors_are_logged() -> Iterator[None]:
    """Refusals by the thousand say nothing; an unforeseen error is logged with its trace."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    yield
    structlog.configure(**before)
