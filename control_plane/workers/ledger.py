"""Ledger: what each worker answered to the last command of each kind about each adapter.

It is why a command is not given twice, why a refused one is not repeated at once (or, when the
refusal is terminal, at all), and where an operator sees what went wrong. Kept in Redis, so that
the next leader goes on where this one stopped and any replica can show problems. Invariant: an
entry counts only for the generation and the worker instance it was written for.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from control_plane.placement.commands import Command, Verb
from control_plane.registry.types import AdapterKey
from control_plane.store.script import Script
from control_plane.workers import keys
from control_plane.workers.types import Outcome, Report, Worker

_ANSWERS = Script(Path(__file__).parent / "lua" / "answers.lua", read_only=True)
TTL_S = 7 * 24 * 3600
FIRST_BACKOFF_S = 1.0
MAX_BACKOFF_S = 60.0
# A worker acknowledges an eviction before its last report shows it; ask again only after this.
REPEAT_EVICT_S = 5.0

Place = tuple[str, AdapterKey, Verb, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """The answer to one command, and when it may be given again."""

    instance_id: str
    generation: int
    outcome: Outcome
    attempts: int
    retry_at_s: float | None  # Unix time; None: not before the generation or the instance changes

    def settles(self, worker: Worker, command: Command) -> bool:
        """Whether this answer is about the very same command."""
        return self.instance_id == worker.instance_id and self.generation >= command.generation


class Ledger:
    """Entries by worker, adapter and verb; read from memory, written to Redis first."""

    def __init__(self, redis: Redis, clock: Callable[[], float]) -> None:
        self._redis = redis
        self._clock = clock  # Unix time: entries outlive the process
        self._entries: dict[Place, Entry] = {}

    def retry_at_s(self, worker: Worker, command: Command) -> float | None:
        """Return when the command may be given: 0 for now, None for not at all (in this generation)."""
        entry = self._entries.get(command.place)
        if entry is None or not entry.settles(worker, command):
            return 0.0
        return entry.retry_at_s

    async def load(self, adapter: AdapterKey) -> None:
        """Read what is known of one adapter into memory."""
        stored: Any = self._redis.hgetall(keys.ledger(str(adapter)))
        for field, text in (await stored).items():
            self._entries[_place(adapter, field)] = _decode(text)

    def forget(self) -> None:
        """Drop what is in memory; Redis keeps it."""
        self._entries.clear()

    async def record(self, worker: Worker, command: Command, outcome: Outcome) -> None:
        """Write an answer."""
        previous = self._entries.get(command.place)
        again = previous is not None and previous.settles(worker, command)
        entry = Entry(
            instance_id=worker.instance_id,
            generation=command.generation,
            outcome=outcome,
            attempts=previous.attempts + 1 if again and previous is not None else 1,
            retry_at_s=None,
        )
        entry = replace(entry, retry_at_s=self._retry_at_s(command, entry))
        self._entries[command.place] = entry
        key = keys.ledger(str(command.action.key))
        written: Any = self._redis.hset(key, _field(command), json.dumps(asdict(entry)))
        await written
        await self._redis.expire(key, TTL_S)

    async def problems(self, adapters: Sequence[AdapterKey]) -> list[tuple[Report, ...]]:
        """Return for each adapter what workers last refused about it, in one round trip for all."""
        if not adapters:
            return []
        stored = await _ANSWERS.run(self._redis, [keys.ledger(str(adapter)) for adapter in adapters])
        return [_refused(dict(zip(flat[::2], flat[1::2], strict=True))) for flat in stored]

    def _retry_at_s(self, command: Command, entry: Entry) -> float | None:
        if entry.outcome.terminal:
            return None
        if entry.outcome.ok:
            return self._clock() + REPEAT_EVICT_S if command.action.verb is Verb.EVICT else None
        backoff_s = min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(entry.attempts - 1, 16))
        return self._clock() + backoff_s


def _refused(stored: Mapping[str, str]) -> tuple[Report, ...]:
    reports = (
        Report(field.partition(" ")[2], _decode(text).outcome) for field, text in sorted(stored.items())
    )
    return tuple(report for report in reports if not report.outcome.ok)


def _field(command: Command) -> str:
    worker_id, _, verb, number = command.place
    return f"{verb.value}@{number} {worker_id}" if number else f"{verb.value} {worker_id}"


def _place(adapter: AdapterKey, field: str) -> Place:
    what, _, worker_id = field.partition(" ")
    verb, _, number = what.partition("@")
    return worker_id, adapter, Verb(verb), int(number or 0)


def _decode(text: str) -> Entry:
    fields = json.loads(text)
    return Entry(**{**fields, "outcome": Outcome(**fields["outcome"])})
