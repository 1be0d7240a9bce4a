"""Client: connections to Redis, and the one border where its failures become ours.

Owns timeouts and retries; knows no key and no value. Invariant: a command that may change
something is sent once; only reads are repeated, because a lost reply may be of a done change.
"""

import asyncio
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.maint_notifications import MaintNotificationsConfig

from control_plane.errors import StoreUnavailable

CONNECT_TIMEOUT_S = 2.0
REPLY_TIMEOUT_S = 5.0  # far above any script here (well under a millisecond)
MAX_CONNECTIONS = 64  # more callers wait for a connection, up to the reply's timeout
READ_RETRY_DELAYS_S = (0.02, 0.1)  # a Valkey of ours is back in about 60 ms

READS = frozenset(
    (
        *("EVAL_RO", "EVALSHA_RO", "EXISTS", "GET", "HGET", "HGETALL", "HLEN", "HMGET", "HSCAN"),
        *("MGET", "PING", "TIME", "XRANGE", "XREAD", "ZCARD", "ZRANGE"),
    )
)


class StoreClient(Redis):
    """A Redis client that raises StoreUnavailable and repeats only reads."""

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send one command; raise StoreUnavailable when no reply comes back."""
        delays = READ_RETRY_DELAYS_S if args[0] in READS else ()
        for delay_s in delays:
            try:
                return await self._execute(*args, **options)
            except (RedisConnectionError, RedisTimeoutError, OSError):
                await asyncio.sleep(delay_s)
        try:
            return await self._execute(*args, **options)
        except (RedisConnectionError, RedisTimeoutError, OSError) as error:
            raise StoreUnavailable(f"Redis gave no answer to {args[0]}: {error}") from error

    async def _execute(self, *args: Any, **options: Any) -> Any:
        # Our own time-out, not redis-py's `socket_timeout`: that writes inside `asyncio.wait_for`, which
        # before Python 3.12 loses a cancellation that comes as the write ends. The task, told to stop,
        # would go on for ever.
        async with asyncio.timeout(REPLY_TIMEOUT_S):
            return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]


def connect(url: str, *, max_connections: int = MAX_CONNECTIONS) -> Redis:
    """Return a client of the server at `url` (redis://, rediss:// or unix://); connects on first use.

    Replies are decoded. redis-py's default of ten retries once ran one slow script eleven times,
    so its own retries are off.
    """
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=max_connections,
        timeout=REPLY_TIMEOUT_S,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        socket_timeout=None,  # see `_execute`
        retry=Retry(NoBackoff(), 0),
        # With these (on by default over TCP) redis-py 8.1 skips its check for a closed connection:
        # after a restart of the server a command that must not be repeated failed.
        maint_notifications_config=MaintNotificationsConfig(enabled=False),
        decode_responses=True,
    )
    return StoreClient.from_pool(pool)


def dedicated(redis: Redis) -> Redis:
    """Return a client with one connection of its own to the same server, for a blocking read.

    A blocking read on the shared pool would hold a connection that short commands wait for.
    The caller closes it.
    """
    shared = redis.connection_pool
    pool = BlockingConnectionPool(
        connection_class=shared.connection_class, max_connections=1, **shared.connection_kwargs
    )
    return StoreClient.from_pool(pool)
