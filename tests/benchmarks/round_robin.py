"""The ideal that adapters' waits are compared with: slots in rotation, loads that cost nothing.

Each of the slots serves one adapter for at most `turn_steps` steps, lets its requests end, and goes
to the next adapter of the ring that has waiting requests. A request takes one step a token. Nothing
else delays anybody: no memory, no loading, no chunks.
"""

from collections import deque
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Slot:
    adapter: int
    since: int
    ends: list[int] = field(default_factory=list)  # steps when its running requests end


class RoundRobin:
    """Steps like an engine: `add`, then `step` gives who started and who ended."""

    def __init__(self, *, num_adapters: int, num_slots: int, turn_steps: int, max_sequences: int) -> None:
        self._num_adapters = num_adapters
        self._num_slots = num_slots
        self._turn_steps = turn_steps
        self._max_sequences = max_sequences
        self._waiting: dict[int, deque[tuple[int, int]]] = {}  # by adapter: request, tokens
        self._slots: list[_Slot] = []
        self._next = 0  # place in the ring
        self._running: dict[int, int] = {}  # request to the step when it ends
        self._step = 0

    def add(self, request: int, adapter: int, num_tokens: int) -> None:
        """A request arrives."""
        self._waiting.setdefault(adapter, deque()).append((request, num_tokens))

    def step(self) -> tuple[list[int], list[int]]:
        """One step: the requests that started in it, and those that ended with it."""
        self._step += 1
        self._rotate()
        started = [request for slot in self._slots for request in self._admit(slot)]
        ended = [request for request, end in self._running.items() if end <= self._step]
        for request in ended:
            del self._running[request]
        return started, ended

    def _admit(self, slot: _Slot) -> list[int]:
        started = []
        waiting = self._waiting.get(slot.adapter)
        while waiting and not self._must_leave(slot) and len(self._running) < self._max_sequences:
            request, num_tokens = waiting.popleft()
            slot.ends.append(self._step + num_tokens - 1)
            self._running[request] = slot.ends[-1]
            started.append(request)
        return started

    def _rotate(self) -> None:
        for slot in self._slots:
            slot.ends = [end for end in slot.ends if end >= self._step]
        self._slots = [slot for slot in self._slots if slot.ends or self._stays(slot)]
        while len(self._slots) < self._num_slots and (adapter := self._next_waiting()) is not None:
            self._slots.append(_Slot(adapter, self._step))

    def _stays(self, slot: _Slot) -> bool:
        return bool(self._waiting.get(slot.adapter)) and not self._must_leave(slot)

    def _must_leave(self, slot: _Slot) -> bool:
        return self._step - slot.since >= self._turn_steps and self._others_wait()

    def _others_wait(self) -> bool:
        served = {slot.adapter for slot in self._slots}
        return any(queue and adapter not in served for adapter, queue in self._waiting.items())

    def _next_waiting(self) -> int | None:
        served = {slot.adapter for slot in self._slots}
        for offset in range(self._num_adapters):
            adapter = (self._next + offset) % self._num_adapters
            if self._waiting.get(adapter) and adapter not in served:
                self._next = adapter + 1
                return adapter
        return None
