"""ResolverChain: resolvers in order; the first that finds acceptable weights wins.

Owns the order, the fallback and the memory of names that nobody knows. Knows no kind of source.
Invariant: a resolver that fails never hides what a later one finds.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence

from control_plane.errors import ControlError, NotFound, Refused, SourceUnavailable
from control_plane.resolvers.base_model import check_base_model
from control_plane.resolvers.types import Resolved, Resolver, ResolveRequest

NEGATIVE_TTL_S = 5.0
MAX_UNKNOWN = 10_000


class ResolverChain:
    """Asks each resolver in turn."""

    def __init__(
        self,
        resolvers: Sequence[Resolver],
        clock: Callable[[], float],
        negative_ttl_s: float = NEGATIVE_TTL_S,
    ) -> None:
        self._resolvers = tuple(resolvers)
        self._clock = clock
        self._negative_ttl_s = negative_ttl_s
        self._unknown: OrderedDict[ResolveRequest, float] = OrderedDict()  # request → when to ask again

    async def resolve(self, request: ResolveRequest) -> Resolved:
        """Return the first acceptable answer.

        Raises NotFound when nobody has it (remembered for a short time when asked by name),
        SourceUnavailable when one that may have it could not be read, else Refused; the message
        has every resolver's reason.
        """
        if self._known_to_be_unknown(request):
            raise self._not_found(request)
        errors: list[tuple[str, ControlError]] = []
        for resolver in self._resolvers:
            try:
                resolved = await resolver.resolve(request)
                if resolved is not None:
                    check_base_model(resolved.uri, resolved.base_model_hint, request.base_model)
                    return resolved
            except (Refused, SourceUnavailable) as error:
                errors.append((resolver.name, error))
        if errors:
            raise _combined(errors)
        self._remember_unknown(request)
        raise self._not_found(request)

    def _known_to_be_unknown(self, request: ResolveRequest) -> bool:
        return self._unknown.get(request, float("-inf")) > self._clock()

    def _remember_unknown(self, request: ResolveRequest) -> None:
        if request.source:
            return  # a path that was just mistyped or is being copied is asked for again at once
        self._unknown[request] = self._clock() + self._negative_ttl_s
        self._unknown.move_to_end(request)
        while len(self._unknown) > MAX_UNKNOWN:
            self._unknown.popitem(last=False)

    def _not_found(self, request: ResolveRequest) -> NotFound:
        asked = ", ".join(resolver.name for resolver in self._resolvers) or "no resolver"
        return NotFound("source", str(request), f"not found (asked: {asked})")


def _combined(errors: Sequence[tuple[str, ControlError]]) -> ControlError:
    """Return one error for all: worth another try if any of them is."""
    message = "; ".join(f"{name}: {error}" for name, error in errors)
    delays = [error.retry_after_s for _, error in errors if isinstance(error, SourceUnavailable)]
    return SourceUnavailable(message, min(delays)) if delays else Refused(message)
