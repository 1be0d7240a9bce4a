"""TenantQuotas: convert, call, convert."""

from control_plane.api import convert
from control_plane.api.caller import Context, tenant_of
from control_plane.quotas.service import Quotas
from control_plane.workers.fleet import Fleet
from protos.quota.v1 import quota_pb2 as pb
from protos.quota.v1 import quota_pb2_grpc


class QuotasServicer(quota_pb2_grpc.TenantQuotasServicer):
    """What tenants may use, and what they use."""

    def __init__(self, quotas: Quotas, fleet: Fleet) -> None:
        self._quotas = quotas
        self._fleet = fleet

    async def SetQuota(self, request: pb.SetQuotaRequest, context: Context) -> pb.Quota:
        """Replace limits."""
        quota = convert.quota_from_proto(request.quota, tenant=tenant_of(request.quota.tenant))
        return convert.quota_to_proto(await self._quotas.set(quota))

    async def GetQuota(self, request: pb.GetQuotaRequest, context: Context) -> pb.Quota:
        """Return limits."""
        return convert.quota_to_proto(await self._quotas.get(tenant_of(request.tenant), request.adapter))

    async def DeleteQuota(self, request: pb.DeleteQuotaRequest, context: Context) -> pb.DeleteQuotaResponse:
        """Remove limits."""
        await self._quotas.delete(tenant_of(request.tenant), request.adapter)
        return pb.DeleteQuotaResponse()

    async def ListQuotas(self, request: pb.ListQuotasRequest, context: Context) -> pb.ListQuotasResponse:
        """Return a page of limits."""
        quotas, next_page_token = await self._quotas.list(request.page_size or 100, request.page_token)
        return pb.ListQuotasResponse(
            quotas=[convert.quota_to_proto(quota) for quota in quotas], next_page_token=next_page_token
        )

    async def GetUsage(self, request: pb.GetUsageRequest, context: Context) -> pb.Usage:
        """Return usage, with the bytes that workers hold."""
        usage = await self._quotas.usage(tenant_of(request.tenant))
        return convert.usage_to_proto(usage, held=self._fleet.held_bytes(usage.tenant))
