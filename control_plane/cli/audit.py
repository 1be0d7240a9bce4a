"""`loraplane audit`: who changed what, or tried to."""

from typing import Annotated

import typer

from control_plane.cli.command import Session
from control_plane.cli.output import moment, print_table
from protos.access.v1 import access_pb2 as pb
from protos.access.v1 import access_pb2_grpc


def audit(
    session: Session,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="at most so many, newest first")] = 100,
) -> None:
    """Show the calls that changed something, or were refused when they tried to."""
    request = pb.ListAuditEventsRequest(page_size=limit)
    session.show(session.call(access_pb2_grpc.AccessKeysStub, "ListAuditEvents", request), _print)


def _print(page: pb.ListAuditEventsResponse) -> None:
    print_table(
        ("time", "key", "tenant", "method", "about", "status"),
        (
            (
                moment(event.time),
                event.key_id,
                event.tenant,
                event.method.rpartition("/")[2],
                " ".join(event.targets),
                event.status,
            )
            for event in page.events
        ),
    )
