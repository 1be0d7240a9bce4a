"""Campaign: many cases against the servers, a few at a time, in batches with a probe after each.

Owns the order and the tally. What is found is made as small as it can be and told with its name, which
makes the case again.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.fuzz.calls import Outcome, call
from tests.fuzz.cases import Case, make_case
from tests.fuzz.memory import resident_bytes
from tests.fuzz.servers import Servers
from tests.fuzz.shrink import smaller
from tests.fuzz.surface import Rpc
from tests.fuzz.verdict import Judge

BATCH = 500
IN_FLIGHT = 24
MAX_DEFECTS = 20  # more of them say nothing new
MAX_ALIKE = 2  # of one method and kind
MAX_SHRINKING = 200  # calls


@dataclass(frozen=True, slots=True)
class Defect:
    """A case that no server may answer as it was answered."""

    case: Case
    objection: str

    def __str__(self) -> str:
        return f"{self.objection}\n  {self.case}"


@dataclass(slots=True)
class Report:
    """What a campaign saw."""

    seed: int
    codes: dict[str, Counter[str]] = field(default_factory=dict)  # by RPC
    defects: list[Defect] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)  # bytes after each batch
    elapsed_s: float = 0.0

    @property
    def growth_bytes(self) -> int:
        """What the process holds more in the last third than in the second, when all is warm.

        The least of each: a large request leaves a peak, a leak stays.
        """
        third = max(1, len(self.resident) // 3)
        return min(self.resident[-third:]) - min(self.resident[third : 2 * third] or self.resident)

    def table(self) -> str:
        """How the calls of each RPC ended."""
        total = sum(sum(codes.values()) for codes in self.codes.values())
        lines = [
            f"{rpc:72} " + " ".join(f"{code}={count}" for code, count in sorted(codes.items()))
            for rpc, codes in sorted(self.codes.items())
        ]
        return "\n".join((f"seed {self.seed}: {total} calls in {self.elapsed_s:.0f} s", *lines))


class Campaign:
    """Fuzzes servers."""

    def __init__(self, servers: Servers, seed: int) -> None:
        self._servers = servers
        self._judge = Judge((*servers.credentials.secrets, *servers.private))
        self._report = Report(seed)
        self._known: Counter[tuple[str, str]] = Counter()  # objections by method and kind

    async def run(self, num_cases: int) -> Report:
        """Make the calls; stop early when there are MAX_DEFECTS."""
        began = time.monotonic()
        for first in range(0, num_cases, BATCH):
            await self._batch(range(first, min(first + BATCH, num_cases)))
            await self._servers.probe()
            self._report.resident.append(resident_bytes())
            if len(self._report.defects) >= MAX_DEFECTS:
                break
        self._report.elapsed_s = time.monotonic() - began
        return self._report

    async def _batch(self, numbers: range) -> None:
        seeds, rpcs = await self._servers.tidy(), self._servers.rpcs
        cases = (
            make_case(self._report.seed, n, rpcs[n % len(rpcs)], seeds, self._servers.credentials)
            for n in numbers
        )
        async with asyncio.TaskGroup() as tasks:
            for _ in range(IN_FLIGHT):
                tasks.create_task(self._work(cases))

    async def _work(self, cases: Iterator[Case]) -> None:
        for case in cases:
            outcome = await self._call(case)
            self._count(case.rpc, outcome)
            objection = self._judge.objection(case, outcome)
            if objection is not None and self._is_new(case, objection):
                self._report.defects.append(await self._smallest(case, objection))

    def _is_new(self, case: Case, objection: str) -> bool:
        """Whether it says more than those that were found; one at a time is made small."""
        known = self._known[case.rpc.method, _kind(objection)]
        self._known[case.rpc.method, _kind(objection)] += 1
        return known < MAX_ALIKE and len(self._report.defects) < MAX_DEFECTS

    async def _call(self, case: Case) -> Outcome:
        metadata = self._servers.credentials.metadata(case.caller)
        return await call(self._servers.channel(case.rpc), case, metadata)

    async def _smallest(self, case: Case, objection: str) -> Defect:
        """Take away what the objection does not need; what does not come again stays whole."""
        kind = _kind(objection)
        left = MAX_SHRINKING
        found = Defect(case, objection)
        candidates = smaller(case)
        while left and (candidate := next(candidates, None)) is not None:
            left -= 1
            again = self._judge.objection(candidate, await self._call(candidate))
            if again is not None and _kind(again) == kind:
                found = Defect(candidate, again)
                candidates = smaller(candidate)
        return found

    def _count(self, rpc: Rpc, outcome: Outcome) -> None:
        codes = self._report.codes.setdefault(str(rpc), Counter())
        codes["left" if outcome.left else outcome.code.name] += 1


def _kind(objection: str) -> str:
    """What alike objections begin with."""
    return objection.split(maxsplit=1)[0]
