"""Caller: who makes the present call, under which id, and which tenant it may speak for.

Set once a call by the interceptor, in a context variable, so that servicers need not pass it on.
"""

from contextvars import ContextVar
from typing import Any, TypeAlias

import grpc

from control_plane.access.types import Identity, Role
from control_plane.errors import Forbidden, InvalidArgument, Unauthenticated

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_identity: ContextVar[Identity] = ContextVar("identity")
_request_id: ContextVar[str] = ContextVar("request_id")
# Of an administrator's own requests, which belong to no tenant: quotas and usage need a name.
ADMIN_TENANT = "admin"


def set_caller(identity: Identity) -> None:
    """Say who makes the present call."""
    _identity.set(identity)


def set_request_id(request_id: str) -> None:
    """Give the present call its id."""
    _request_id.set(request_id)


def request_id() -> str:
    """Return the present call's id: ours, because a client could evade quotas by reusing one."""
    return _request_id.get()


def caller() -> Identity:
    """Return who makes the present call; raise Unauthenticated in a method that needs no key."""
    try:
        return _identity.get()
    except LookupError:
        raise Unauthenticated("the call carries no API key") from None


def tenant_of(requested: str) -> str:
    """Return the tenant a call is about: the one it names, or the caller's own.

    Raises Forbidden for another's tenant, InvalidArgument for an administrator who names none.
    """
    tenant = tenant_or_all(requested)
    if tenant is None:
        raise InvalidArgument("tenant", requested, "must be named by an administrator")
    return tenant


def tenant_or_all(requested: str) -> str | None:
    """As `tenant_of`, but None (all tenants) for an administrator who names none."""
    identity = caller()
    if identity.role is Role.ADMIN:
        return requested or None
    if requested not in ("", identity.tenant):
        raise Forbidden(f"the key belongs to another tenant than {requested!r}")
    return identity.tenant


def borrowing_tenant(requested: str) -> str | None:
    """Return the caller's tenant when a call names another one, whose adapters it may know if shared."""
    identity = caller()
    if identity.role is Role.ADMIN or requested in ("", identity.tenant):
        return None
    return identity.tenant


def inference_tenant(model: str) -> str:
    """Return the tenant that a request for a model counts for.

    An administrator acts for the owner when the model is `tenant/adapter`.
    """
    identity = caller()
    if identity.role is not Role.ADMIN:
        return identity.tenant
    owner, slash, _ = model.partition("/")
    return owner if slash and owner else ADMIN_TENANT


def is_confined() -> bool:
    """Whether the caller may have read only what is kept for its tenant: all but administrators."""
    return caller().role is not Role.ADMIN
