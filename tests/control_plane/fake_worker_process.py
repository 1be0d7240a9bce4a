"""A fake worker as a process of its own, so that it can be killed as one.

    python -m tests.control_plane.fake_worker_process ENDPOINT WORKER_ID     (the key on standard input)

It writes each command that it gets as a line of base64 to standard output.
"""

import asyncio
import base64
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from protos.sync.v1 import sync_pb2 as sync
from tests.control_plane.fake_worker import FakeWorker, Script

ROOT = Path(__file__).parents[2]


@dataclass
class WorkerProcess:
    """The process, from outside: what it was told so far."""

    control_plane: str
    key: str
    worker_id: str = "worker-0"
    commands: list[sync.Command] = field(default_factory=list)

    @asynccontextmanager
    async def run(self) -> AsyncIterator["WorkerProcess"]:
        """Have it run for the time of the block, unless it is killed before."""
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", __name__, self.control_plane, self.worker_id),
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert self._process.stdin is not None
        self._process.stdin.write(f"{self.key}\n".encode())
        reading = asyncio.create_task(self._read())
        try:
            yield self
        finally:
            if self._process.returncode is None:
                self.kill()
            await self._process.wait()
            await reading

    def kill(self) -> None:
        """As an operator or the kernel would: SIGKILL."""
        self._process.send_signal(signal.SIGKILL)

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self.commands.append(sync.Command.FromString(base64.b64decode(line)))


async def main(endpoint: str, worker_id: str) -> None:
    """Work until killed."""

    def tell(command: sync.Command) -> None:
        print(base64.b64encode(command.SerializeToString()).decode(), flush=True)

    worker = FakeWorker(endpoint, sys.stdin.readline().strip(), worker_id, Script(refuse=tell))
    async with worker.run():
        await worker.left.wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
