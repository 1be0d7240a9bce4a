"""From configuration to the remote places that a worker may read adapters from.

A place is imported when it is configured, so that a worker without S3 or the hub needs neither's
libraries. Nothing is connected before an adapter is read.
"""

from importlib import import_module
from typing import Any

from data_plane.adapters.places import Remotes
from data_plane.config import EngineConfig
from data_plane.errors import InvalidRequest


def build_remotes(config: EngineConfig) -> Remotes:
    """The configured places by scheme; raise InvalidRequest when one's library is not installed."""
    remotes = {}
    if config.s3_buckets:
        s3 = _optional("s3", "s3_buckets", config.s3_buckets)
        access = s3.S3Access(
            endpoint_url=config.s3_endpoint_url,
            region=config.s3_region,
            access_key_id=config.s3_access_key_id,
            secret_access_key=config.s3_secret_access_key.get_secret_value(),
            timeout_s=config.s3_timeout_s,
        )
        remotes[s3.SCHEME] = s3.S3Source(config.s3_buckets, access).open
    if config.hub_repos:
        hub = _optional("hub", "hub_repos", config.hub_repos)
        token = config.hub_token.get_secret_value()
        remotes[hub.SCHEME] = hub.HubSource(config.hub_repos, endpoint=config.hub_endpoint, token=token).open
    return remotes


def _optional(extra: str, field: str, value: object) -> Any:
    try:
        return import_module(f"data_plane.adapters.{extra}_source")
    except ImportError as error:
        raise InvalidRequest(field, value, f"needs `pip install 'loraplane[{extra}]'`: {error}") from error
