"""Concurrency: how many requests of one tenant all workers together compute at once, as each says itself.

Asked of the workers, not of the control plane: its picture of a worker is as old as the last report, and
the sum of an old and a new one counts requests twice. What clients see is no measure either: tokens wait
in a busy client's sockets long after their request ended.
"""

import asyncio
import re
import urllib.request
from collections import deque

from tests.integration.stack import Process, Stack

EVERY_S = 0.05
# One request may end on a worker that was asked and the next begin on one that was not yet; hardly
# three times one after another.
SAMPLES = 3
SCRAPE_TIMEOUT_S = 1.0


class Most:
    """The most requests of a tenant at once that several samples in a row agree on."""

    def __init__(self, tenant: str) -> None:
        self._lease = re.compile(rf'^loraplane_adapter_leases{{.*tenant="{tenant}".*}} (\S+)$', re.MULTILINE)
        self._last: deque[int] = deque([0] * SAMPLES, maxlen=SAMPLES)
        self.concurrent = 0

    async def watch(self, stack: Stack) -> None:
        """Sample all workers together, until cancelled."""
        while True:
            counts = await asyncio.gather(*(asyncio.to_thread(self._of, one) for one in stack.workers))
            self._last.append(sum(counts))
            self.concurrent = max(self.concurrent, min(self._last))
            await asyncio.sleep(EVERY_S)

    def _of(self, worker: Process) -> int:
        addresses = re.findall(r"metrics_address=(\S+)", worker.log)
        if not addresses:
            return 0
        try:
            with urllib.request.urlopen(
                f"http://{addresses[-1]}/metrics", timeout=SCRAPE_TIMEOUT_S
            ) as answer:
                return sum(int(float(number)) for number in self._lease.findall(answer.read().decode()))
        except OSError:
            return 0  # killed or stopped: nothing is known, so nothing is counted
