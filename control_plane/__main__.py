"""A control-plane process: settings → store → replica, until SIGTERM or SIGINT."""

import asyncio
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

import structlog
import uvloop
from pydantic import ValidationError

from control_plane import key_files, logs
from control_plane.access.keys import Keys
from control_plane.access.types import Role
from control_plane.config import ControlSettings, explained
from control_plane.errors import ControlError
from control_plane.running import running
from control_plane.store.client import connect
from control_plane.store.valkey import EmbeddedValkey

_log = structlog.get_logger("control_plane")


async def serve(settings: ControlSettings, redis_url: str) -> None:
    """Serve until SIGTERM or SIGINT, then let running requests end."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    redis = connect(redis_url)
    try:
        keys = Keys(redis)
        await ensure_key(keys, Role.ADMIN, settings.admin_key_path)
        await ensure_key(keys, Role.WORKER, settings.worker_key_path)
        async with running(settings, redis) as plane:
            _log.info("control plane serves", address=plane.address)
            await stopped.wait()
            _log.info("control plane stops")
    finally:
        await redis.aclose()


async def ensure_key(keys: Keys, role: Role, path: Path) -> None:
    """Have a key of this role whose secret is in a file; make both at the first start."""
    secret = key_files.read(path)
    if secret is not None:
        await keys.create(role, name=path.name, secret=secret)  # known already, unless Redis is a new one
        return
    issued = await keys.create(role, name=path.name)
    key_files.write(path, issued.secret)
    _log.info("key created", role=role.value, file=str(path), key_id=issued.identity.key_id)


def main() -> int:
    """Start a control plane; return the exit code. A bad setting is one message and exit code 2."""
    try:
        settings = ControlSettings(_cli_parse_args=True)  # type: ignore[call-arg]
    except ValidationError as error:
        print(f"control plane does not start: {explained(error)}", file=sys.stderr)
        return 2
    logs.configure(level=settings.log_level, form=settings.log_format)
    with ExitStack() as owned:
        try:
            redis_url = settings.redis_url
            if not redis_url:
                # Before the event loop: a child that ends with us is bound to the main thread.
                redis_url = owned.enter_context(EmbeddedValkey(settings.state_dir / "valkey")).url
            uvloop.run(serve(settings, redis_url))
        except* (ControlError, OSError) as errors:
            print(f"control plane ends: {errors.exceptions[0]}", file=sys.stderr)
            return_code = 2
        else:
            return_code = 0
    return return_code


if __name__ == "__main__":
    sys.exit(main())
