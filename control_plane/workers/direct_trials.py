"""DirectTrials: how direct requests went, for the canaries that they were part of.

A grant names the revision; whether that is on trial is the registry's to say, at the time of the word.
"""

from control_plane.access.grants import Grant
from control_plane.errors import NotFound
from control_plane.registry.service import Registry
from control_plane.registry.trials import Ending, Trials
from control_plane.registry.types import AdapterKey, Target
from protos.sync.v1 import sync_pb2 as sync


class DirectTrials:
    """Notes the ends of direct requests."""

    def __init__(self, registry: Registry, trials: Trials) -> None:
        self._registry = registry
        self._trials = trials

    async def note(self, grant: Grant, usage: sync.DirectUsage) -> None:
        """Note one that has ended; of an adapter that is gone, nothing. Raises StoreUnavailable."""
        if grant.adapter is None:
            return
        try:
            adapter = await self._registry.get(AdapterKey(grant.adapter.tenant, grant.adapter.name))
            revision = adapter.revision(grant.adapter.revision)
        except (NotFound, KeyError):
            return
        first_token_s = usage.first_token_s if usage.HasField("first_token_s") else None
        target = Target(grant.base_model, adapter, revision)
        self._trials.note(target, Ending(usage.failed, first_token_s))
