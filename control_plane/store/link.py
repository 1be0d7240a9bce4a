"""Link: what the URL of a Redis says of the way there. Opens no connection.

Invariant: what is shown of a URL holds no password.
"""

import re

from redis.asyncio.connection import SSLConnection, parse_url

from control_plane.addresses import is_loopback_host


def leaves_in_plain_text(url: str) -> bool:
    """Whether commands and replies would pass other machines unencrypted; ValueError: it is no URL."""
    # redis-py's own parser: a query may name a host too.
    parts = parse_url(url)
    if "path" in parts or parts.get("connection_class") is SSLConnection:
        return False
    return not is_loopback_host(parts.get("host", "localhost"))


def masked(url: str) -> str:
    """Return the URL as it may be shown."""
    scheme, separator, rest = url.partition("://")
    # From the last @ on, because a password that nobody escaped may hold any other character.
    _, at, place = rest.rpartition("@")
    shown = re.sub(r"((?:username|password)=)[^&]*", r"\1***", place)
    return f"{scheme}{separator}{'***@' if at else ''}{shown}"
