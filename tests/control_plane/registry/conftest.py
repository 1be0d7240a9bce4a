"""A registry over a real Valkey and real adapter directories."""

import time
from pathlib import Path

import pytest
from redis.asyncio import Redis

from control_plane.registry.service import Registry
from control_plane.resolvers.chain import ResolverChain
from control_plane.resolvers.filesystem import FilesystemResolver


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def resolvers(root: Path) -> ResolverChain:
    return ResolverChain([FilesystemResolver([root])], time.monotonic)


@pytest.fixture
def registry(redis: Redis, resolvers: ResolverChain) -> Registry:
    return Registry(redis, resolvers)
