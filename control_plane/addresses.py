"""Addresses: which of them stay on this machine. What goes further needs TLS or a word of consent."""

import ipaddress


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach an address of the form host:port or unix:path."""
    return address.startswith("unix:") or is_loopback_host(address.rpartition(":")[0].strip("[]"))


def is_loopback_host(host: str) -> bool:
    """Whether a host's name or number is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
