"""Resolvers of third parties: found by entry point, kept at arm's length.

A distribution offers one under the group `loraplane.resolvers`:

    [project.entry-points."loraplane.resolvers"]
    vault = "acme_vault:make_resolver"      # Callable[[Mapping[str, str]], Resolver]

It is made with `resolver_options["vault"]` when `resolvers` names it, and never imported otherwise.
Invariant: whatever it raises, the chain sees an error of ours.
"""

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import cast

import structlog

from control_plane.errors import ControlError, InvalidArgument, SourceUnavailable
from control_plane.resolvers.types import Resolved, Resolver, ResolveRequest

GROUP = "loraplane.resolvers"
_log = structlog.get_logger(__name__)


def installed_names() -> frozenset[str]:
    """Return the names that installed distributions offer."""
    return frozenset(entry_points(group=GROUP).names)


def make_installed(name: str, options: Mapping[str, str]) -> Resolver:
    """Make the resolver of this name; raise InvalidArgument when it is not there or does not start."""
    found = entry_points(group=GROUP, name=name)
    if not found:
        raise InvalidArgument("resolvers", name, f"is offered by no installed entry point of {GROUP}")
    return Installed(name, _make(next(iter(found)), options))


def _make(entry_point: EntryPoint, options: Mapping[str, str]) -> Resolver:
    try:
        return cast(Resolver, entry_point.load()(options))
    except Exception as error:  # the border to code that is not ours
        rule = f"({entry_point.value}) does not start: {type(error).__name__}: {error}"
        raise InvalidArgument("resolvers", entry_point.name, rule) from error


class Installed:
    """A third party's resolver under the name that the configuration calls it."""

    def __init__(self, name: str, resolver: Resolver) -> None:
        self.name = name
        self._resolver = resolver

    async def resolve(self, request: ResolveRequest) -> Resolved | None:
        """See Resolver."""
        try:
            return await self._resolver.resolve(request)
        except ControlError:
            raise
        except Exception as error:  # the border to code that is not ours
            _log.exception("resolver failed", resolver=self.name, request=str(request))
            raise SourceUnavailable(f"failed with {type(error).__name__}: {error}") from error

    async def close(self) -> None:
        """See Resolver."""
        try:
            await self._resolver.close()
        except Exception:  # the border to code that is not ours: the others are closed all the same
            _log.exception("resolver did not close", resolver=self.name)
