"""`loraplane quota …`: what a tenant may use, and what it used."""

from typing import Annotated

import typer

from control_plane.cli.command import Session, command
from control_plane.cli.output import console, print_table, size
from protos.quota.v1 import quota_pb2 as pb
from protos.quota.v1 import quota_pb2_grpc

app = typer.Typer(no_args_is_help=True, help="Quotas: set, get, usage")

Tenant = Annotated[str, typer.Argument(help="the tenant")]
Limit = Annotated[int | None, typer.Option(min=0, help="default: unlimited")]
OfAdapter = Annotated[str, typer.Option("--adapter", help="limits of this one adapter of the tenant")]
STUB = quota_pb2_grpc.TenantQuotasStub


def _print_quotas(quotas: list[pb.Quota]) -> None:
    names = [field.name for field in pb.Limits.DESCRIPTOR.fields]
    columns = ("tenant", "adapter", *(name.replace("_", " ") for name in names))
    print_table(columns, (_row(one, names) for one in quotas))


def _row(quota: pb.Quota, names: list[str]) -> tuple[object, ...]:
    limits = {field.name: value for field, value in quota.limits.ListFields()}
    return quota.tenant, quota.adapter, *(limits.get(name, "–") for name in names)


@command(app, "set")
def set_(
    session: Session,
    tenant: Tenant,
    requests_per_minute: Limit = None,
    tokens_per_minute: Limit = None,
    concurrent_requests: Limit = None,
    registered_adapters: Limit = None,
    adapter_bytes: Limit = None,
    resident_slots: Limit = None,
    cold_loads_per_minute: Limit = None,
    adapter: OfAdapter = "",
) -> None:
    """Set a tenant's limits, whole: what is left out becomes unlimited."""
    limits = pb.Limits(
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        concurrent_requests=concurrent_requests,
        registered_adapters=registered_adapters,
        adapter_bytes=adapter_bytes,
        resident_slots=resident_slots,
        cold_loads_per_minute=cold_loads_per_minute,
    )
    request = pb.SetQuotaRequest(quota=pb.Quota(tenant=tenant, adapter=adapter, limits=limits))
    session.show(session.call(STUB, "SetQuota", request), lambda quota: _print_quotas([quota]))


@command(app)
def get(session: Session, tenant: Tenant, adapter: OfAdapter = "") -> None:
    """Show a tenant's limits."""
    request = pb.GetQuotaRequest(tenant=tenant, adapter=adapter)
    session.show(session.call(STUB, "GetQuota", request), lambda quota: _print_quotas([quota]))


@command(app)
def delete(session: Session, tenant: Tenant, adapter: OfAdapter = "") -> None:
    """Remove a tenant's limits: the defaults apply again."""
    answer = session.call(STUB, "DeleteQuota", pb.DeleteQuotaRequest(tenant=tenant, adapter=adapter))
    whose = f"{tenant}/{adapter}" if adapter else tenant
    session.show(answer, lambda _: console.print(f"deleted the quota of {whose}"))


@command(app, "list")
def list_(session: Session) -> None:
    """List tenants with limits of their own."""
    request = pb.ListQuotasRequest(page_size=1000)
    found: list[pb.Quota] = []
    while True:
        page: pb.ListQuotasResponse = session.call(STUB, "ListQuotas", request)
        found.extend(page.quotas)
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    session.show(pb.ListQuotasResponse(quotas=found), lambda page: _print_quotas(page.quotas))


@command(app)
def usage(session: Session, tenant: Tenant) -> None:
    """Show what a tenant uses and has used."""
    session.show(session.call(STUB, "GetUsage", pb.GetUsageRequest(tenant=tenant)), _print_usage)


def _print_usage(usage: pb.Usage) -> None:
    print_table(
        (
            *("tenant", "running", "requests", "refused", "prompt tokens", "new tokens", "adapters", "bytes"),
            *("slots", "slot bytes", "cpu bytes", "disk bytes", "cold loads"),
        ),
        [
            (
                usage.tenant,
                usage.concurrent_requests,
                usage.requests,
                usage.rejected_requests,
                usage.prompt_tokens,
                usage.completion_tokens,
                usage.registered_adapters,
                size(usage.adapter_bytes),
                usage.resident_slots,
                size(usage.slot_bytes),
                size(usage.cpu_bytes),
                size(usage.disk_bytes),
                usage.cold_loads,
            )
        ],
    )
