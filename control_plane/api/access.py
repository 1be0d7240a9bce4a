"""AccessKeys: convert, call, convert."""

from control_plane.access.audit import AuditEvent, AuditLog
from control_plane.access.keys import Keys
from control_plane.access.types import Identity, IssuedKey, KeyInfo, Role
from control_plane.api.caller import Context, caller, tenant_or_all
from control_plane.errors import Forbidden, InvalidArgument, NotFound
from control_plane.workers.convert import timestamp
from protos.access.v1 import access_pb2 as pb
from protos.access.v1 import access_pb2_grpc

_ROLE = {
    Role.ADMIN: pb.ROLE_ADMIN,
    Role.TENANT_ADMIN: pb.ROLE_TENANT_ADMIN,
    Role.INFERENCE: pb.ROLE_INFERENCE,
    Role.WORKER: pb.ROLE_WORKER,
}
_ROLE_FROM = {proto: role for role, proto in _ROLE.items()}


class AccessServicer(access_pb2_grpc.AccessKeysServicer):
    """API keys: all for administrators, inference keys of their own tenant for tenant-admins."""

    def __init__(self, keys: Keys, audit: AuditLog) -> None:
        self._keys = keys
        self._audit = audit

    async def CreateKey(self, request: pb.CreateKeyRequest, context: Context) -> pb.CreateKeyResponse:
        """Issue a key."""
        role, tenant = _role(request.role), tenant_or_all(request.tenant) or ""
        _check_manages(Identity("", tenant, role))
        issued = await self._keys.create(role, tenant, request.description)
        return await self._shown(issued)

    async def ListKeys(self, request: pb.ListKeysRequest, context: Context) -> pb.ListKeysResponse:
        """Return keys, without secrets."""
        tenant = tenant_or_all(request.tenant)
        keys = [info for info in await self._keys.list() if tenant in (None, info.identity.tenant)]
        return pb.ListKeysResponse(keys=[_key_to_proto(info) for info in keys])

    async def RevokeKey(self, request: pb.RevokeKeyRequest, context: Context) -> pb.RevokeKeyResponse:
        """Revoke a key."""
        _check_manages(_find(await self._keys.list(), request.key_id))
        await self._keys.revoke(request.key_id)
        return pb.RevokeKeyResponse()

    async def RotateKey(self, request: pb.RotateKeyRequest, context: Context) -> pb.CreateKeyResponse:
        """Issue a successor."""
        _check_manages(_find(await self._keys.list(), request.key_id))
        return await self._shown(await self._keys.rotate(request.key_id, request.grace_s))

    async def ListAuditEvents(
        self, request: pb.ListAuditEventsRequest, context: Context
    ) -> pb.ListAuditEventsResponse:
        """Return a page of the audit log."""
        events, next_page_token = await self._audit.page(request.page_size, request.page_token)
        return pb.ListAuditEventsResponse(
            events=[_event_to_proto(event) for event in events], next_page_token=next_page_token
        )

    async def _shown(self, issued: IssuedKey) -> pb.CreateKeyResponse:
        info = next(info for info in await self._keys.list() if info.identity == issued.identity)
        return pb.CreateKeyResponse(key=_key_to_proto(info), secret=issued.secret)


def _check_manages(key: Identity) -> None:
    """Raise unless the caller may issue and revoke such a key."""
    who = caller()
    if who.role is Role.ADMIN:
        return
    if who.tenant != key.tenant:
        raise NotFound("key", key.key_id)  # whether another tenant has it is not for the caller to learn
    if key.role is not Role.INFERENCE:
        raise Forbidden(f"a tenant-admin manages inference keys, not those of role {key.role.value!r}")


def _find(keys: tuple[KeyInfo, ...], key_id: str) -> Identity:
    for info in keys:
        if info.identity.key_id == key_id:
            return info.identity
    raise NotFound("key", key_id)


def _role(value: pb.Role.ValueType) -> Role:
    try:
        return _ROLE_FROM[value]
    except KeyError:
        raise InvalidArgument("role", value, "must be named") from None


def _key_to_proto(info: KeyInfo) -> pb.Key:
    return pb.Key(
        key_id=info.identity.key_id,
        tenant=info.identity.tenant,
        role=_ROLE[info.identity.role],
        description=info.name,
        create_time=timestamp(info.created_s),
        last_use_time=timestamp(info.last_use_s),
        expire_time=timestamp(info.expires_s),
    )


def _event_to_proto(event: AuditEvent) -> pb.AuditEvent:
    return pb.AuditEvent(
        event_id=event.event_id,
        time=timestamp(event.time_s),
        key_id=event.key_id,
        tenant=event.tenant,
        method=event.method,
        targets=event.targets,
        status=event.status,
        request_id=event.request_id,
    )
