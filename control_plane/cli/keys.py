"""`loraplane key …`: API keys."""

from enum import StrEnum
from typing import Annotated

import typer

from control_plane.cli.command import Session, command
from control_plane.cli.output import console, enum_label, print_table
from protos.access.v1 import access_pb2 as pb
from protos.access.v1 import access_pb2_grpc

app = typer.Typer(no_args_is_help=True, help="API keys: create, list, revoke")
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
    session.call(STUB, "RevokeKey", pb.RevokeKeyRequest(key_id=key_id))
    console.print(f"revoked {key_id}")


def _print_keys(page: pb.ListKeysResponse) -> None:
    print_table(
        ("key", "tenant", "role", "description"),
        ((k.key_id, k.tenant, enum_label(pb.Role.Name(k.role), "ROLE_"), k.description) for k in page.keys),
    )
