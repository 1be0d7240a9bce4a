"""Fairness between tenants: the virtual token counter of Sheng et al. (OSDI 2024).

Owns what each tenant was served, weighted; knows nothing of requests. The tenant with the lowest
counter is served next. A tenant that comes back is lifted to the lowest counter in use, so being
away earns no credit; between two tenants that always wait, weighted service differs by a bound.
"""

from collections import Counter
from collections.abc import Callable

PROMPT_COST = 1.0  # a prompt token, computed beside hundreds of others
OUTPUT_COST = 2.0  # an output token, which takes a step of its own; the paper's ratio


class VirtualCounters:
    """Weighted service of every tenant that has requests."""

    def __init__(self, weight: Callable[[str], float] = lambda tenant: 1.0) -> None:
        self._weight = weight
        self._served: dict[str, float] = {}
        self._requests: Counter[str] = Counter()
        self._floor = 0.0  # of the tenant that left last, when nobody is there

    def served(self, tenant: str) -> float:
        """Weighted service so far."""
        return self._served.get(tenant, self._floor)

    def join(self, tenant: str) -> None:
        """A request of the tenant arrives."""
        if not self._requests[tenant]:
            present = [self._served[other] for other, count in self._requests.items() if count]
            lowest = min(present, default=self._floor)
            self._served[tenant] = max(self._served.get(tenant, 0.0), lowest)
        self._requests[tenant] += 1

    def leave(self, tenant: str) -> None:
        """A request of the tenant ends."""
        self._requests[tenant] -= 1
        if not self._requests[tenant]:
            del self._requests[tenant]
            self._floor = max(self._floor, min(self._served.values()))
            # Who is at the floor would be lifted to it anyway: forget, so that the table stays small.
            self._served = {
                name: served
                for name, served in self._served.items()
                if name in self._requests or served > self._floor
            }

    def charge_prompt(self, tenant: str, num_tokens: int) -> None:
        """Prompt tokens will be computed for the tenant."""
        self._charge(tenant, PROMPT_COST * num_tokens)

    def charge_output(self, tenant: str, num_tokens: int) -> None:
        """Tokens were generated for the tenant."""
        self._charge(tenant, OUTPUT_COST * num_tokens)

    def _charge(self, tenant: str, cost: float) -> None:
        self._served[tenant] = self.served(tenant) + cost / self._weight(tenant)
