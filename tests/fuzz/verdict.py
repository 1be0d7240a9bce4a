"""Verdict: what no server may answer, whatever it was asked."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import grpc

from tests.fuzz.calls import Outcome
from tests.fuzz.cases import HANG_S, Case

_CRASHES = frozenset(
    {
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DATA_LOSS,
    }
)
_REFUSALS = frozenset({grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED})
_INTERNALS = re.compile(
    r"Traceback|File \"|\.py\b|site-packages|<class '|object at 0x|Errno"
    r"|redis|WRONGTYPE|EVALSHA|\.lua\b|\bERR "
)
# What gRPC itself says of a call that is too large, without asking any servicer.
_TOO_LARGE = re.compile(
    r"received (initial )?metadata size exceeds|Received message larger than max|larger than max \("
)
# A worker reads a request before it looks at its grant; what cannot be read has told nothing.
_UNREADABLE = "begins no message of the method's type"


@dataclass(frozen=True, slots=True)
class Judge:
    """Knows what must stay inside."""

    private: Sequence[str]  # secrets, and paths of the servers' own

    def objection(self, case: Case, outcome: Outcome) -> str | None:
        """Why the outcome is a defect; None when it is none."""
        if outcome.code in _CRASHES:
            return f"{outcome.code.name}: {outcome.text[:500]}"
        hurried = case.timeout_s < HANG_S
        if outcome.code is grpc.StatusCode.DEADLINE_EXCEEDED and hurried:
            return None
        if outcome.code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"hangs: no end within {HANG_S:g} s"
        if not case.caller.may and not self._is_refusal(outcome):
            return f"{outcome.code.name} to a caller who may not: {outcome.text[:200]}"
        if outcome.code is grpc.StatusCode.OK or outcome.left:
            return None
        return self._objection_to_error(case, outcome)

    def _is_refusal(self, outcome: Outcome) -> bool:
        if outcome.code in _REFUSALS or outcome.left:
            return True
        return bool(_TOO_LARGE.search(outcome.text) or _UNREADABLE in outcome.text)

    def _objection_to_error(self, case: Case, outcome: Outcome) -> str | None:
        leak = _INTERNALS.search(outcome.text) or next((p for p in self.private if p in outcome.text), None)
        if leak:
            return f"{outcome.code.name} tells internals ({leak}): {outcome.text[:500]}"
        ours = case.rpc.method.startswith("/loraplane.")
        if ours and outcome.code is grpc.StatusCode.UNIMPLEMENTED:
            return f"UNIMPLEMENTED, and listed: {outcome.text[:200]}"
        if ours and not outcome.reason and not _TOO_LARGE.search(outcome.text):
            return f"{outcome.code.name} without ErrorInfo: {outcome.text[:500]}"
        return None
