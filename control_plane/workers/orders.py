"""Orders: the commands in flight, from the decision to give one until its answer is in the ledger.

Knows nothing of why a command is given. Invariants: at most MAX_IN_FLIGHT a worker and one a pair
at a time; a command that the ledger knows an answer to is not sent, whoever wrote that answer.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable

import structlog

from control_plane.errors import NoWorker
from control_plane.placement.commands import Command, Evict
from control_plane.placement.holders import Pair
from control_plane.registry.types import AdapterKey
from control_plane.workers.dispatch import Dispatcher
from control_plane.workers.ledger import Ledger
from control_plane.workers.types import Outcome, Worker

# A worker reads adapters with one or two threads: a longer line would only run into time-outs.
MAX_IN_FLIGHT = 8
_log = structlog.get_logger(__name__)


class Orders:
    """Gives commands and writes down what came of them."""

    def __init__(
        self,
        ledger: Ledger,
        dispatcher: Dispatcher,
        *,
        fencing_token: int,
        clock: Callable[[], float],
        ended: Callable[[Pair], None],
        exists: Callable[[AdapterKey], Awaitable[bool]],
    ) -> None:
        self._ledger = ledger
        self._dispatcher = dispatcher
        self._fencing_token = fencing_token
        self._clock = clock  # Unix time, as the ledger's
        self._ended = ended  # told when a pair is free again
        self._exists = exists  # whether the registry has an adapter, whatever planning knows
        self._in_flight: dict[str, set[AdapterKey]] = defaultdict(set)

    def full(self, worker_id: str) -> bool:
        """Whether a worker can be given no more for now."""
        return len(self._in_flight[worker_id]) >= MAX_IN_FLIGHT

    def busy(self, worker_id: str, key: AdapterKey) -> bool:
        """Whether a command about this pair is in flight."""
        return key in self._in_flight[worker_id]

    def give(self, worker: Worker, command: Command, tasks: asyncio.TaskGroup) -> None:
        """Send a command and record its answer, in a task of its own."""
        self._in_flight[command.worker_id].add(command.action.key)
        tasks.create_task(self._give(worker, command))

    async def _give(self, worker: Worker, command: Command) -> None:
        try:
            if not await self._overtaken(worker, command):
                outcome = await self._outcome(command)
                await self._ledger.record(worker, command, outcome)
                _log_outcome(command, outcome)
        finally:
            self._in_flight[command.worker_id].discard(command.action.key)
            self._ended((command.worker_id, command.action.key))

    async def _outcome(self, command: Command) -> Outcome:
        try:
            return await self._dispatcher.send(command, fencing_token=self._fencing_token)
        except NoWorker as error:
            # An answer like any other: without it, a worker that cannot be reached is tried at once again.
            return Outcome(ok=False, reason=str(error))

    async def _overtaken(self, worker: Worker, command: Command) -> bool:
        """Whether something happened that planning does not know yet."""
        # Answered in an earlier term, or evicted by an operator on another replica?
        await self._ledger.load(command.action.key)
        retry_at_s = self._ledger.retry_at_s(worker, command)
        if retry_at_s is None or retry_at_s > self._clock():
            return True
        # Registered a moment ago and loaded by a request, before its change came here?
        return isinstance(command.action, Evict) and await self._exists(command.action.key)


def _log_outcome(command: Command, outcome: Outcome) -> None:
    log = _log.info if outcome.ok else _log.warning
    log(
        "command done" if outcome.ok else "command refused",
        verb=command.action.verb.value,
        adapter=str(command.action.key),
        worker_id=command.worker_id,
        generation=command.generation,
        reason=outcome.reason,
        elapsed_s=round(outcome.elapsed_s, 4),
    )
