"""Declared: adapters that the settings name, registered at every start.

Invariant: after it each of them exists with the weights that its source has now, whichever replicas
start at once and whatever an earlier start registered.
"""

from collections.abc import Iterable

from control_plane.errors import NameTaken
from control_plane.lora_modules import LoraModule
from control_plane.registry.service import Registry
from control_plane.registry.types import NewAdapter


async def register_declared(registry: Registry, modules: Iterable[LoraModule]) -> None:
    """Register each, or publish what its source has now. Raises what `register` raises: no start without."""
    for module in modules:
        new = NewAdapter(key=module.key, source=module.source, base_model=module.base_model)
        try:
            await registry.register(new)
        except NameTaken:
            await registry.publish(module.key, module.source)
