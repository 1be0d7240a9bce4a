"""ResolverChain: resolvers in order; the first that finds acceptable weights wins.

Owns the order, the fallback, the time each resolver has and the memory of names that nobody knows.
Knows no kind of source. Invariants: a resolver that fails or hangs never hides what a later one finds;
one name is resolved by one caller at a time, so that a rush for it reads the source once after another
and asks once for what nobody has.
"""

import asyncio
from collections.abc import Callable, Sequence

from control_plane.errors import ControlError, NotFound, Refused, SourceUnavailable
from control_plane.resolvers.base_model import check_base_model
from control_plane.resolvers.name_locks import NameLocks
from control_plane.resolvers.types import Resolved, Resolver, ResolveRequest
from control_plane.resolvers.unknown import Unknown

NEGATIVE_TTL_S = 5.0
MAX_UNKNOWN = 10_000
TIMEOUT_S = 120.0  # of one resolver: several gigabytes, hashed


class ResolverChain:
    """Asks each resolver in turn."""

    def __init__(
        self,
        resolvers: Sequence[Resolver],
        clock: Callable[[], float],
        negative_ttl_s: float = NEGATIVE_TTL_S,
        timeout_s: float = TIMEOUT_S,
        max_unknown: int = MAX_UNKNOWN,
    ) -> None:
        self._resolvers = tuple(resolvers)
        self._unknown = Unknown(clock, negative_ttl_s, max_unknown)
        self._timeout_s = timeout_s
        self._locks = NameLocks()

    async def resolve(self, request: ResolveRequest) -> Resolved:
        """Return the first acceptable answer.

        Raises NotFound when nobody has it (remembered for a short time when asked by name),
        SourceUnavailable when one that may have it could not be read, else Refused; the message
        has every resolver's reason.
        """
        async with self._locks.hold((request.tenant, request.name)):
            if request in self._unknown:
                raise self._not_found(request)
            return await self._first(request)

    async def close(self) -> None:
        """Close every resolver."""
        for resolver in self._resolvers:
            await resolver.close()

    async def _first(self, request: ResolveRequest) -> Resolved:
        errors: list[tuple[str, ControlError]] = []
        for resolver in self._resolvers:
            try:
                resolved = await self._ask(resolver, request)
                if resolved is not None:
                    return resolved
            except ControlError as error:
                errors.append((resolver.name, error))
        if errors:
            raise _combined(errors)
        self._unknown.add(request)
        raise self._not_found(request)

    async def _ask(self, resolver: Resolver, request: ResolveRequest) -> Resolved | None:
        limit = asyncio.timeout(self._timeout_s)
        try:
            async with limit:
                resolved = await resolver.resolve(request)
        except TimeoutError as error:
            if not limit.expired():
                raise  # the resolver's own, which it should have translated
            raise SourceUnavailable(f"{request} was not read within {self._timeout_s:g} s") from error
        if resolved is not None:
            check_base_model(resolved.uri, resolved.base_model_hint, request.base_model)
        return resolved

    def _not_found(self, request: ResolveRequest) -> NotFound:
        asked = ", ".join(resolver.name for resolver in self._resolvers) or "no resolver"
        return NotFound("source", str(request), f"not found (asked: {asked})")


def _combined(errors: Sequence[tuple[str, ControlError]]) -> ControlError:
    """Return one error for all: worth another try if any of them is."""
    message = "; ".join(f"{name}: {error}" for name, error in errors)
    delays = [error.retry_after_s for _, error in errors if isinstance(error, SourceUnavailable)]
    return SourceUnavailable(message, min(delays)) if delays else Refused(message)
