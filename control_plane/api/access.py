"""AccessKeys: convert, call, convert."""

from control_plane.access.keys import Keys
from control_plane.access.types import Identity, KeyInfo, Role
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

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    async def CreateKey(self, request: pb.CreateKeyRequest, context: Context) -> pb.CreateKeyResponse:
        """Issue a key."""
        role, tenant = _role(request.role), tenant_or_all(request.tenant) or ""
        _check_manages(Identity("", tenant, role))
        issued = await self._keys.create(role, tenant, request.description)
        info = next(info for info in await self._keys.list() if info.identity == issued.identity)
        return pb.CreateKeyResponse(key=_key_to_proto(info), secret=issued.secret)

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
    )
