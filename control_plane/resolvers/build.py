"""From settings to the chain: the resolvers that are configured, in their order.

The only place that knows every kind. A kind is imported when it is named, so that a control plane
without S3 or the hub needs neither's libraries.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from control_plane.config import ControlSettings
from control_plane.errors import InvalidArgument
from control_plane.resolvers.chain import ResolverChain
from control_plane.resolvers.filesystem import FilesystemResolver
from control_plane.resolvers.installed import make_installed
from control_plane.resolvers.s3_places import S3Places
from control_plane.resolvers.types import Resolver


def build_chain(settings: ControlSettings, clock: Callable[[], float]) -> ResolverChain:
    """Return the chain; raise InvalidArgument when a resolver cannot be made."""
    return ResolverChain(
        [_build(name, settings) for name in settings.resolvers],
        clock,
        negative_ttl_s=settings.resolver_negative_ttl_s,
        timeout_s=settings.resolver_timeout_s,
    )


def _build(name: str, settings: ControlSettings) -> Resolver:
    match name:
        case "filesystem":
            return FilesystemResolver(settings.adapter_roots)
        case "s3":
            return _s3(settings)
        case "hub":
            return _hub(settings)
        case _:
            return make_installed(name, settings.resolver_options.get(name, {}))


def _s3(settings: ControlSettings) -> Resolver:
    s3, client = _optional("s3", "s3"), _optional("s3", "s3_client")
    access = client.S3Access(
        endpoint_url=settings.s3_endpoint_url,
        region=settings.s3_region,
        access_key_id=settings.s3_access_key_id,
        secret_access_key=settings.s3_secret_access_key.get_secret_value(),
        timeout_s=settings.s3_timeout_s,
    )
    resolver: Resolver = s3.S3Resolver(S3Places(settings.s3_buckets, settings.s3_template), access)
    return resolver


def _hub(settings: ControlSettings) -> Resolver:
    hub = _optional("hub", "hub")
    resolver: Resolver = hub.HubResolver(
        settings.hub_repos, endpoint=settings.hub_endpoint, token=settings.hub_token.get_secret_value()
    )
    return resolver


def _optional(extra: str, module: str) -> Any:
    try:
        return import_module(f"control_plane.resolvers.{module}")
    except ImportError as error:
        rule = f"needs `pip install 'loraplane[{extra}]'`: {error}"
        raise InvalidArgument("resolvers", extra, rule) from error
