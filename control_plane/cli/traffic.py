"""`loraplane traffic …`: which revisions of an adapter get requests, and trials of new ones."""

from typing import Annotated, Any

import typer
from google.protobuf.message import Message

from control_plane.cli.adapters import Name, Tenant
from control_plane.cli.command import Session, command
from control_plane.cli.output import enum_label, moment, print_table
from protos.registry.v1 import registry_pb2 as pb
from protos.registry.v1 import registry_pb2_grpc

app = typer.Typer(no_args_is_help=True, help="Traffic over revisions: set, show, canary, promote, abort")


def _call(session: Session, method: str, request: Message) -> Any:
    return session.call(registry_pb2_grpc.AdapterRegistryStub, method, request)


def _share(text: str) -> pb.TrafficWeight:
    revision, equals, weight = text.partition("=")
    if not (equals and revision.isdecimal() and weight.isdecimal()):
        raise typer.BadParameter(f"{text!r} must be REVISION=WEIGHT", param_hint="WEIGHTS")
    return pb.TrafficWeight(revision=int(revision), weight=int(weight))


def print_traffic(adapter: pb.Adapter) -> None:
    """Who gets what now, then the decisions."""
    total = sum(share.weight for share in adapter.traffic)
    shares = {share.revision: share.weight for share in adapter.traffic} or {adapter.current_revision: 1}
    print_table(
        ("revision", "weight", "share", "is"),
        (
            (number, weight, f"{weight / (total or 1):.0%}", _standing(adapter, number))
            for number, weight in shares.items()
        ),
    )
    if adapter.decisions:
        print_table(
            ("time", "decision", "revision", "reason"),
            (
                (
                    moment(one.time),
                    enum_label(pb.TrafficDecision.Kind.Name(one.kind), "KIND_"),
                    one.revision or "",
                    one.reason,
                )
                for one in adapter.decisions
            ),
        )


def _standing(adapter: pb.Adapter, number: int) -> str:
    if adapter.HasField("canary") and adapter.canary.revision == number:
        return "canary"
    return "current" if number == adapter.current_revision else ""


@command(app, "set")
def set_(
    session: Session,
    name: Name,
    weights: Annotated[
        list[str] | None, typer.Argument(help="REVISION=WEIGHT …; none: all to the current one")
    ] = None,
    tenant: Tenant = "",
) -> None:
    """Split traffic over revisions; a canary ends."""
    request = pb.SetTrafficRequest(
        tenant=tenant, name=name, traffic=[_share(weight) for weight in weights or ()]
    )
    session.show(_call(session, "SetTraffic", request), print_traffic)


@command(app)
def show(session: Session, name: Name, tenant: Tenant = "") -> None:
    """Show shares and decisions."""
    request = pb.GetAdapterRequest(tenant=tenant, name=name)
    session.show(_call(session, "GetAdapter", request), print_traffic)


@command(app)
def canary(
    session: Session,
    name: Name,
    percent: Annotated[int, typer.Option(min=1, max=99, help="of the requests")],
    revision: Annotated[int, typer.Option(help="default: the newest")] = 0,
    max_error_increase: Annotated[float | None, typer.Option(help="of the share that fails")] = None,
    max_first_token_ratio: Annotated[float | None, typer.Option(help="to the current one's time")] = None,
    window: Annotated[float | None, typer.Option(help="seconds that count")] = None,
    min_requests: Annotated[int | None, typer.Option(help="before anything is decided")] = None,
    tenant: Tenant = "",
) -> None:
    """Put a revision on trial; it is rolled back by itself when it fails or is slow."""
    request = pb.StartCanaryRequest(
        tenant=tenant,
        name=name,
        revision=revision,
        percent=percent,
        max_error_increase=max_error_increase,
        max_first_token_ratio=max_first_token_ratio,
        window_s=window,
        min_requests=min_requests,
    )
    session.show(_call(session, "StartCanary", request), print_traffic)


@command(app)
def promote(session: Session, name: Name, tenant: Tenant = "") -> None:
    """Make the canary the current revision."""
    request = pb.EndCanaryRequest(tenant=tenant, name=name, promote=True)
    session.show(_call(session, "EndCanary", request), print_traffic)


@command(app)
def abort(session: Session, name: Name, tenant: Tenant = "") -> None:
    """Give the canary no traffic any more."""
    request = pb.EndCanaryRequest(tenant=tenant, name=name)
    session.show(_call(session, "EndCanary", request), print_traffic)
