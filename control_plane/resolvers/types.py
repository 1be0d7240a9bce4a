"""What a resolver is asked and what it answers, as values and a Protocol."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolveRequest:
    """Where are this adapter's weights?"""

    tenant: str
    name: str
    source: str = ""  # path or URI; empty: find it by tenant and name
    base_model: str = ""  # empty: not known
    confined: bool = False  # only what is kept for this tenant may be read, not what others have

    def __str__(self) -> str:
        return self.source or f"{self.tenant}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """Weights that were found, read and accepted."""

    uri: str  # canonical
    digest: str  # as protos/registry/v1/registry.proto defines it
    rank: int  # the largest of any module
    target_modules: tuple[str, ...]
    size_bytes: int  # of the weight files
    base_model_hint: str = ""  # what the adapter's config says it was trained on


class Resolver(Protocol):
    """Knows one kind of place where adapters are."""

    @property
    def name(self) -> str:
        """What messages call it."""

    async def resolve(self, request: ResolveRequest) -> Resolved | None:
        """Find, read and check the weights; None when this is not its kind of source or nothing is there.

        Raises Refused (what is there can never be served) or SourceUnavailable (try again). Never
        blocks the event loop.
        """

    async def close(self) -> None:
        """Give up connections; nothing is resolved after this."""
