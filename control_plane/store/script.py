"""Script: one operation in Lua that Redis runs atomically.

Owns how a script file reaches the server. Invariant: a script is sent by its digest and sent
whole only when the server does not know it, which costs one round trip after a restart.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

Argument = str | int | float


class Script:
    """The text of one or more Lua files; earlier files define functions for later ones."""

    def __init__(self, *files: Path, read_only: bool = False) -> None:
        self._text = "\n".join(file.read_text(encoding="utf-8") for file in files)
        self._digest = hashlib.sha1(self._text.encode(), usedforsecurity=False).hexdigest()
        self._read_only = read_only

    async def run(self, redis: Redis, keys: Sequence[str], arguments: Sequence[Argument] = ()) -> Any:
        """Run it once and return its reply.

        A read-only script is sent as EVALSHA_RO, which the client may repeat after a lost
        connection; any other is sent once only, because a lost reply may be of a done change.
        """
        # redis-py annotates the return as a union with its synchronous client's.
        by_digest: Any = redis.evalsha_ro if self._read_only else redis.evalsha
        by_text: Any = redis.eval_ro if self._read_only else redis.eval
        try:
            return await by_digest(self._digest, len(keys), *keys, *arguments)
        except NoScriptError:
            return await by_text(self._text, len(keys), *keys, *arguments)
