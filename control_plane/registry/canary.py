"""Canary: whether a revision on trial must be rolled back. A pure function of two counts."""

from dataclasses import dataclass

from control_plane.registry.types import Canary


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """What one revision's requests of the window were like."""

    requests: int = 0
    failed: int = 0
    first_tokens: int = 0  # requests that got one
    first_token_sum_s: float = 0.0

    @property
    def failed_share(self) -> float:
        """Failed requests of all; 0 of none."""
        return self.failed / self.requests if self.requests else 0.0

    @property
    def first_token_s(self) -> float:
        """Mean time to the first token; 0 of none."""
        return self.first_token_sum_s / self.first_tokens if self.first_tokens else 0.0


def verdict(canary: Canary, stable: Arm, trial: Arm) -> str | None:
    """Return why the trial must end, with the figures; None to go on.

    A stable revision without requests counts as one without failures, but gives no time to compare.
    """
    if trial.requests < canary.min_requests:
        return None
    most = stable.failed_share + canary.max_error_increase
    if trial.failed_share > most:
        return (
            f"failed {trial.failed} of {trial.requests} requests ({trial.failed_share:.1%}), "
            f"revision on trial; at most {most:.1%} beside {stable.failed} of {stable.requests}"
        )
    if min(trial.first_tokens, stable.first_tokens) < canary.min_requests:
        return None
    slowest_s = stable.first_token_s * canary.max_first_token_ratio
    if trial.first_token_s > slowest_s:
        return (
            f"first token after {trial.first_token_s:.3f} s on average, at most {slowest_s:.3f} s "
            f"beside {stable.first_token_s:.3f} s"
        )
    return None
