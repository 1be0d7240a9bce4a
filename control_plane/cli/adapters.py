"""`loraplane adapter …`: what exists, and commands to workers about it."""

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Any

import typer
from google.protobuf.message import Message

from control_plane.cli.command import Session, command
from control_plane.cli.output import console, enum_label, print_table, short_digest, size
from protos.registry.v1 import registry_pb2 as pb
from protos.registry.v1 import registry_pb2_grpc

app = typer.Typer(no_args_is_help=True, help="Adapters: register, publish, load, evict, …")

Name = Annotated[str, typer.Argument(help="the adapter's name")]
Tenant = Annotated[str, typer.Option(help="the owner; default: your key's tenant")]
WorkerIds = Annotated[list[str] | None, typer.Option("--worker", help="only this worker; repeat for more")]
ExpectedRevision = Annotated[int | None, typer.Option(help="refuse unless it is current")]
Source = Annotated[str, typer.Option("--source", help="path, file://…, s3://… or hf://…")]


class Policy(StrEnum):
    """Reload policies as the command line spells them."""

    IMMEDIATE = "immediate"
    FINISH_RUNNING = "finish-running"
    DRAIN = "drain"

    @property
    def proto(self) -> pb.ReloadPolicy.ValueType:
        """The protocol's value."""
        return pb.ReloadPolicy.Value(f"RELOAD_POLICY_{self.name}")


PolicyOption = Annotated[Policy, typer.Option("--policy", help="what happens to running requests")]

LaterPolicy = Annotated[
    Policy, typer.Option("--policy", help="what happens to running requests at later revisions")
]


def _call(session: Session, method: str, request: Message) -> Any:
    return session.call(registry_pb2_grpc.AdapterRegistryStub, method, request)


def _labels(pairs: list[str] | None) -> dict[str, str]:
    labels = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not equals:
            raise typer.BadParameter(f"{pair!r} must be KEY=VALUE", param_hint="--label")
        labels[key] = value
    return labels


def print_adapters(adapters: Iterable[pb.Adapter]) -> None:
    """Adapters as a table, one row each, the current revision's facts."""
    columns = ("name", "tenant", "revision", "digest", "rank", "bytes", "state", "problem")
    print_table(columns, (_row(adapter) for adapter in adapters))


def _row(adapter: pb.Adapter) -> tuple[object, ...]:
    current = next(r for r in adapter.revisions if r.number == adapter.current_revision)
    return (
        adapter.name,
        adapter.tenant,
        current.number,
        short_digest(current.digest),
        current.rank,
        size(current.size_bytes),
        _state(adapter, current),
        current.failure or "; ".join(f"{one.worker_id}: {one.reason}" for one in adapter.problems),
    )


def _state(adapter: pb.Adapter, current: pb.Revision) -> str:
    if adapter.HasField("delete_time"):
        return "deleting"
    return enum_label(pb.RevisionState.Name(current.state), "REVISION_STATE_")


def print_adapter(adapter: pb.Adapter) -> None:
    """One adapter as a table."""
    print_adapters([adapter])


def _show_reports(session: Session, reports: pb.WorkerReports) -> None:
    session.show(reports, _print_reports)
    if not all(report.ok for report in reports.reports):
        raise typer.Exit(1)


def _print_reports(reports: pb.WorkerReports) -> None:
    columns = ("worker", "result", "bytes", "elapsed", "reason")
    print_table(
        columns,
        (
            (r.worker_id, "ok" if r.ok else "refused", size(r.size_bytes), f"{r.elapsed_s:.3f} s", r.reason)
            for r in reports.reports
        ),
    )


@command(app)
def register(
    session: Session,
    name: Name,
    source: Source = "",
    tenant: Tenant = "",
    base_model: Annotated[str, typer.Option(help="default: the model the workers serve")] = "",
    label: Annotated[list[str] | None, typer.Option("--label", help="KEY=VALUE; repeat for more")] = None,
    alias: Annotated[list[str] | None, typer.Option("--alias", help="another name; repeat for more")] = None,
    share_with: Annotated[list[str] | None, typer.Option(help="a tenant; repeat for more")] = None,
    expected_digest: Annotated[str, typer.Option(help="refuse any other")] = "",
    policy: LaterPolicy = Policy.FINISH_RUNNING,
) -> None:
    """Register an adapter."""
    request = pb.RegisterAdapterRequest(
        tenant=tenant,
        name=name,
        source=source,
        base_model=base_model,
        labels=_labels(label),
        aliases=alias or (),
        shared_with=share_with or (),
        expected_digest=expected_digest,
        reload_policy=policy.proto,
    )
    session.show(_call(session, "RegisterAdapter", request), print_adapter)


@command(app, "list")
def list_(
    session: Session,
    tenant: Tenant = "",
    prefix: Annotated[str, typer.Option(help="only names that start with this")] = "",
    label: Annotated[list[str] | None, typer.Option("--label", help="KEY=VALUE; repeat for more")] = None,
) -> None:
    """List adapters."""
    request = pb.ListAdaptersRequest(tenant=tenant, name_prefix=prefix, labels=_labels(label), page_size=1000)
    found: list[pb.Adapter] = []
    while True:
        page: pb.ListAdaptersResponse = _call(session, "ListAdapters", request)
        found.extend(page.adapters)
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    session.show(pb.ListAdaptersResponse(adapters=found), lambda page: print_adapters(page.adapters))


@command(app)
def get(
    session: Session,
    name: Name,
    tenant: Tenant = "",
) -> None:
    """Show one adapter."""
    request = pb.GetAdapterRequest(tenant=tenant, name=name)
    session.show(_call(session, "GetAdapter", request), print_adapter)


@command(app)
def publish(
    session: Session,
    name: Name,
    source: Source = "",
    tenant: Tenant = "",
    policy: PolicyOption = Policy.FINISH_RUNNING,
    expected_revision: ExpectedRevision = None,
    expected_digest: Annotated[str, typer.Option(help="refuse any other")] = "",
    keep_current: Annotated[
        bool, typer.Option("--keep-current", help="only add the revision, for traffic or a canary")
    ] = False,
) -> None:
    """Publish new weights under an adapter's name."""
    request = pb.PublishRevisionRequest(
        tenant=tenant,
        name=name,
        source=source,
        reload_policy=policy.proto,
        expected_revision=expected_revision,
        expected_digest=expected_digest,
        keep_current=keep_current,
    )
    session.show(_call(session, "PublishRevision", request), print_adapter)


@command(app)
def rollback(
    session: Session,
    name: Name,
    revision: Annotated[int, typer.Option(help="default: the one before the current")] = 0,
    tenant: Tenant = "",
    expected_revision: ExpectedRevision = None,
) -> None:
    """Make an older revision current again."""
    request = pb.RollbackRequest(
        tenant=tenant, name=name, revision=revision, expected_revision=expected_revision
    )
    session.show(_call(session, "Rollback", request), print_adapter)


@command(app)
def share(
    session: Session,
    name: Name,
    with_tenant: Annotated[list[str], typer.Option("--with", help="a tenant; repeat for more")],
    tenant: Tenant = "",
) -> None:
    """Let other tenants use an adapter, as `owner/name`."""
    request = pb.ShareAdapterRequest(tenant=tenant, name=name, with_tenants=with_tenant)
    session.show(_call(session, "ShareAdapter", request), print_adapter)


@command(app)
def unshare(
    session: Session,
    name: Name,
    with_tenant: Annotated[list[str], typer.Option("--with", help="a tenant; repeat for more")],
    tenant: Tenant = "",
) -> None:
    """Take sharing back: their next request is refused."""
    request = pb.UnshareAdapterRequest(tenant=tenant, name=name, with_tenants=with_tenant)
    session.show(_call(session, "UnshareAdapter", request), print_adapter)


@command(app)
def delete(
    session: Session,
    name: Name,
    tenant: Tenant = "",
) -> None:
    """Delete an adapter; requests that use it end first."""
    request = pb.DeleteAdapterRequest(tenant=tenant, name=name)

    def said(answer: pb.DeleteAdapterResponse) -> None:
        held = answer.HasField("adapter")
        console.print(f"deleting {name}: workers still hold it" if held else f"deleted {name}")

    session.show(_call(session, "DeleteAdapter", request), said)


@command(app)
def load(
    session: Session,
    name: Name,
    tenant: Tenant = "",
    worker: WorkerIds = None,
    inplace: Annotated[
        bool, typer.Option("--inplace", help="read its source again where it is loaded")
    ] = False,
) -> None:
    """Load an adapter on workers now."""
    request = pb.LoadAdapterRequest(tenant=tenant, name=name, worker_ids=worker or (), load_inplace=inplace)
    _show_reports(session, _call(session, "LoadAdapter", request))


@command(app)
def evict(
    session: Session,
    name: Name,
    tenant: Tenant = "",
    worker: WorkerIds = None,
    cancel_running: Annotated[bool, typer.Option(help="do not wait for its requests")] = False,
) -> None:
    """Evict an adapter from workers now; the next request loads it again."""
    request = pb.EvictAdapterRequest(
        tenant=tenant, name=name, worker_ids=worker or (), cancel_running=cancel_running
    )
    _show_reports(session, _call(session, "EvictAdapter", request))


@command(app, "reload")
def reload_(
    session: Session,
    name: Name,
    tenant: Tenant = "",
    worker: WorkerIds = None,
    policy: PolicyOption = Policy.FINISH_RUNNING,
) -> None:
    """Read an adapter anew from its source, in place."""
    request = pb.ReloadAdapterRequest(tenant=tenant, name=name, worker_ids=worker or (), policy=policy.proto)
    _show_reports(session, _call(session, "ReloadAdapter", request))


@command(app)
def pin(
    session: Session,
    name: Name,
    slot: Annotated[bool, typer.Option("--slot/--cpu", help="in a slot, or in the CPU cache")] = False,
    tenant: Tenant = "",
) -> None:
    """Keep an adapter in a tier of its workers."""
    tier = pb.PIN_TIER_SLOT if slot else pb.PIN_TIER_CPU
    request = pb.PinAdapterRequest(tenant=tenant, name=name, tier=tier)
    session.show(_call(session, "PinAdapter", request), print_adapter)


@command(app)
def unpin(
    session: Session,
    name: Name,
    tenant: Tenant = "",
) -> None:
    """Take a pin back."""
    request = pb.UnpinAdapterRequest(tenant=tenant, name=name)
    session.show(_call(session, "UnpinAdapter", request), print_adapter)
