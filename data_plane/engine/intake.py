"""Intake: which requests the engine takes, and what each of them is from then on.

Owns the order of arrival, the seeds of those who gave none, and whether the engine takes requests at
all; knows nothing of scheduling. What is refused leaves no trace.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from data_plane.adapters.lifecycle import AdapterManager
from data_plane.engine.admission import AdmissionLimits, admitted_len
from data_plane.engine.events import GenerationRequest
from data_plane.errors import Draining, Overloaded
from data_plane.scheduler.request import Request


@dataclass(frozen=True, slots=True)
class IntakeLimits:
    """What bounds each request, and how many may wait."""

    admission: AdmissionLimits
    max_waiting: int  # requests; more are refused


class Intake:
    """Makes requests of what clients ask for."""

    def __init__(
        self,
        limits: IntakeLimits,
        adapters: AdapterManager,
        *,
        clock: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self._limits = limits
        self._adapters = adapters
        self._clock = clock
        self._rng = rng
        self._orders = count()
        self._closed = False

    def close(self) -> None:
        """Refuse everything from now on."""
        self._closed = True

    def take(self, generation: GenerationRequest, *, num_waiting: int) -> Request:
        """The request that this becomes; raise a WorkerError to refuse it."""
        max_len = self._admit(generation, num_waiting)
        seed = generation.sampling.seed
        return Request(
            request_id=generation.request_id,
            order=next(self._orders),
            prompt_ids=generation.prompt_ids,
            sampling=generation.sampling,
            seed=self._rng.getrandbits(63) if seed is None else seed,
            max_len=max_len,
            arrival_s=self._clock(),
            source=generation.adapter,
            tenant=generation.tenant,
            priority=generation.priority,
            deadline_s=generation.deadline_s,
        )

    def _admit(self, generation: GenerationRequest, num_waiting: int) -> int:
        """The longest that its sequences may get."""
        if self._closed:
            raise Draining("the worker finishes what it has and takes no new requests")
        max_len = admitted_len(generation, self._limits.admission)
        if num_waiting >= self._limits.max_waiting:
            raise Overloaded(f"{self._limits.max_waiting} requests wait already")
        if generation.adapter is not None:
            failure = self._adapters.recent_failure(generation.adapter.revision.digest)
            if failure is not None:
                raise failure
        return max_len
