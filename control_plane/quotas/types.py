"""Limits and usage of a tenant as values."""

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a tenant may use. None is unlimited; 0 refuses everything."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None
    registered_adapters: int | None = None
    adapter_bytes: int | None = None
    resident_slots: int | None = None
    cold_loads_per_minute: int | None = None

    def arguments(self) -> tuple[str, ...]:
        """Those that scripts check for requests, in the order of scope.lua's LIMITS; '' for no limit."""
        checked = (getattr(self, field.name) for field in fields(self) if field.name not in OF_REGISTRY)
        return tuple("" if limit is None else str(limit) for limit in checked)


# Of what a tenant registers: enforced by the registry, and no limits of one adapter.
OF_REGISTRY = frozenset({"registered_adapters", "adapter_bytes"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """The limits of a tenant, or of one of its adapters when `adapter` is named."""

    tenant: str
    limits: Limits
    adapter: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """An admitted request's share of the limits: settled with the true use, or expired."""

    tenant: str
    request_id: str
    tokens: int  # reserved: the worst case, prompt + max_tokens
    adapter: str = ""  # whose own limits it also counts against
    limits_slots: bool = False  # slots or cold loads are limited too
    local: bool = False  # admitted by this process alone, while Redis was away


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a tenant uses now and has used."""

    tenant: str
    concurrent_requests: int = 0
    requests: int = 0
    rejected_requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    registered_adapters: int = 0
    adapter_bytes: int = 0
    remaining_requests: int | None = None
    remaining_tokens: int | None = None
    cold_loads: int = 0
    remaining_cold_loads: int | None = None
