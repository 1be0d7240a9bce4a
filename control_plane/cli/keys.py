"""`loraplane key …`: API keys."""

from enum import StrEnum
from typing import Annotated

import typer

from control_plane.cli.command import Session, command
from control_plane.cli.output import console, enum_label, moment, print_table
from protos.access.v1 import access_pb2 as pb
from protos.access.v1 import access_pb2_grpc

app = typer.Typer(no_args_is_help=True, help="API keys: create, list, rotate, revoke")
STUB = access_pb2_grpc.AccessKeysStub


class RoleName(StrEnum):
    """Roles as the command line spells them."""

    ADMIN = "admin"
    TENANT_ADMIN = "tenant-admin"
    INFERENCE = "inference"
    WORKER = "worker"


@command(app)
def create(
    session: Session,
    tenant: Annotated[str, typer.Option(help="whose key; for roles of a tenant")] = "",
    role: Annotated[RoleName, typer.Option(help="what it may do")] = RoleName.INFERENCE,
    description: Annotated[str, typer.Option(help="what it is for")] = "",
) -> None:
    """Create a key and print its secret, once."""
    proto = pb.Role.Value(f"ROLE_{role.name}")
    request = pb.CreateKeyRequest(tenant=tenant, role=proto, description=description)
    session.show(session.call(STUB, "CreateKey", request), lambda answer: console.print(answer.secret))


@command(app, "list")
def list_(session: Session, tenant: Annotated[str, typer.Option(help="only this tenant's")] = "") -> None:
    """List keys, without secrets."""
    session.show(session.call(STUB, "ListKeys", pb.ListKeysRequest(tenant=tenant)), _print_keys)


@command(app)
def revoke(session: Session, key_id: Annotated[str, typer.Argument(help="the key's id")]) -> None:
    """Revoke a key."""
    answer = session.call(STUB, "RevokeKey", pb.RevokeKeyRequest(key_id=key_id))
    session.show(answer, lambda _: console.print(f"revoked {key_id}"))


@command(app)
def rotate(
    session: Session,
    key_id: Annotated[str, typer.Argument(help="the key's id")],
    grace: Annotated[float, typer.Option(min=0, help="seconds that the old key still works")] = 0.0,
) -> None:
    """Create a key's successor, print its secret, once, and end the old one."""
    request = pb.RotateKeyRequest(key_id=key_id, grace_s=grace)
    session.show(session.call(STUB, "RotateKey", request), lambda answer: console.print(answer.secret))


def _print_keys(page: pb.ListKeysResponse) -> None:
    print_table(
        ("key", "tenant", "role", "description", "last use", "expires"),
        (
            (
                key.key_id,
                key.tenant,
                enum_label(pb.Role.Name(key.role), "ROLE_"),
                key.description,
                moment(key.last_use_time) if key.HasField("last_use_time") else "never",
                moment(key.expire_time) if key.HasField("expire_time") else "",
            )
            for key in page.keys
        ),
    )
