"""AdapterRegistry: convert, call, convert."""

from collections.abc import AsyncIterator

from control_plane.api import convert
from control_plane.api.caller import Context, borrowing_tenant, is_confined, tenant_of, tenant_or_all
from control_plane.registry.service import Registry
from control_plane.registry.types import Adapter, AdapterKey, PinTier, ReloadPolicy, as_shared_with
from control_plane.workers.farewell import is_held
from control_plane.workers.fleet import Fleet
from control_plane.workers.ledger import Ledger
from control_plane.workers.operator import Operator
from protos.registry.v1 import registry_pb2 as pb
from protos.registry.v1 import registry_pb2_grpc

MAX_PAGE = 1000


class RegistryServicer(registry_pb2_grpc.AdapterRegistryServicer):
    """What should be, and commands about it."""

    def __init__(self, registry: Registry, operator: Operator, ledger: Ledger, fleet: Fleet) -> None:
        self._registry = registry
        self._operator = operator
        self._ledger = ledger
        self._fleet = fleet

    async def RegisterAdapter(self, request: pb.RegisterAdapterRequest, context: Context) -> pb.Adapter:
        """Register."""
        new = convert.new_adapter(
            request,
            tenant=tenant_of(request.tenant),
            base_model=self._fleet.only_base_model(),
            confined=is_confined(),
        )
        return await self._shown(await self._registry.register(new))

    async def GetAdapter(self, request: pb.GetAdapterRequest, context: Context) -> pb.Adapter:
        """Return one, with what workers refused about it; another's as it is shared with the caller."""
        borrower = borrowing_tenant(request.tenant)
        if borrower is not None:
            shared = await self._registry.get_shared(borrower, AdapterKey(request.tenant, request.name))
            if shared is not None:
                return convert.adapter_to_proto(as_shared_with(shared, borrower), ())
        return await self._shown(await self._registry.find(_key(request.tenant, request.name)))

    async def ListAdapters(
        self, request: pb.ListAdaptersRequest, context: Context
    ) -> pb.ListAdaptersResponse:
        """Return a page."""
        page = await self._registry.list(
            tenant_or_all(request.tenant),
            request.name_prefix,
            dict(request.labels),
            request.page_size or 100,
            request.page_token,
        )
        problems = await self._ledger.problems([adapter.key for adapter in page.adapters])
        adapters = map(convert.adapter_to_proto, page.adapters, problems)
        return pb.ListAdaptersResponse(adapters=adapters, next_page_token=page.next_page_token)

    async def PublishRevision(self, request: pb.PublishRevisionRequest, context: Context) -> pb.Adapter:
        """Add a revision and make it current."""
        adapter = await self._registry.publish(
            _key(request.tenant, request.name),
            request.source,
            request.expected_revision if request.HasField("expected_revision") else None,
            request.expected_digest,
            convert.policy(request.reload_policy),
            confined=is_confined(),
            keep_current=request.keep_current,
        )
        return await self._shown(adapter)

    async def Rollback(self, request: pb.RollbackRequest, context: Context) -> pb.Adapter:
        """Make an older revision current."""
        adapter = await self._registry.rollback(
            _key(request.tenant, request.name),
            request.revision,
            request.expected_revision if request.HasField("expected_revision") else None,
        )
        return await self._shown(adapter)

    async def SetTraffic(self, request: pb.SetTrafficRequest, context: Context) -> pb.Adapter:
        """Split traffic over revisions."""
        key = _key(request.tenant, request.name)
        return await self._shown(await self._registry.set_traffic(key, convert.traffic(request)))

    async def StartCanary(self, request: pb.StartCanaryRequest, context: Context) -> pb.Adapter:
        """Put a revision on trial."""
        key = _key(request.tenant, request.name)
        return await self._shown(await self._registry.start_canary(key, convert.canary(request)))

    async def EndCanary(self, request: pb.EndCanaryRequest, context: Context) -> pb.Adapter:
        """End the trial."""
        key = _key(request.tenant, request.name)
        return await self._shown(await self._registry.end_canary(key, promote=request.promote))

    async def PinAdapter(self, request: pb.PinAdapterRequest, context: Context) -> pb.Adapter:
        """Keep it in a tier."""
        key = _key(request.tenant, request.name)
        return await self._shown(await self._registry.pin(key, convert.pin_tier(request.tier)))

    async def UnpinAdapter(self, request: pb.UnpinAdapterRequest, context: Context) -> pb.Adapter:
        """Take the pin back."""
        key = _key(request.tenant, request.name)
        return await self._shown(await self._registry.pin(key, PinTier.NONE))

    async def ShareAdapter(self, request: pb.ShareAdapterRequest, context: Context) -> pb.Adapter:
        """Let other tenants use it."""
        key = _key(request.tenant, request.name)
        return await self._shown(await self._registry.share(key, request.with_tenants))

    async def UnshareAdapter(self, request: pb.UnshareAdapterRequest, context: Context) -> pb.Adapter:
        """Take that back."""
        key = _key(request.tenant, request.name)
        return await self._shown(await self._registry.unshare(key, request.with_tenants))

    async def DeleteAdapter(
        self, request: pb.DeleteAdapterRequest, context: Context
    ) -> pb.DeleteAdapterResponse:
        """Delete, or mark as deleted while workers hold it."""
        key = _key(request.tenant, request.name)
        left = await self._registry.delete(key, lambda adapter: is_held(self._fleet, adapter))
        return pb.DeleteAdapterResponse(adapter=await self._shown(left) if left else None)

    async def WatchAdapters(
        self, request: pb.WatchAdaptersRequest, context: Context
    ) -> AsyncIterator[pb.AdapterEvent]:
        """Stream changes of one tenant, or of all."""
        tenant = tenant_or_all(request.tenant)
        after = convert.resource_version(request.resource_version)
        async for watched in self._registry.watch(tenant, after):
            yield convert.change_to_proto(watched)

    async def LoadAdapter(self, request: pb.LoadAdapterRequest, context: Context) -> pb.WorkerReports:
        """Load on workers now."""
        adapter = await self._registry.get(_key(request.tenant, request.name))
        reports = await self._operator.load(adapter, request.worker_ids, inplace=request.load_inplace)
        return convert.reports_to_proto(reports)

    async def EvictAdapter(self, request: pb.EvictAdapterRequest, context: Context) -> pb.WorkerReports:
        """Evict from workers now, also what is being deleted: to cancel the requests that it waits for."""
        adapter = await self._registry.find(_key(request.tenant, request.name))
        reports = await self._operator.evict(
            adapter, request.worker_ids, cancel_running=request.cancel_running
        )
        return convert.reports_to_proto(reports)

    async def ReloadAdapter(self, request: pb.ReloadAdapterRequest, context: Context) -> pb.WorkerReports:
        """Reload in place now."""
        adapter = await self._registry.get(_key(request.tenant, request.name))
        policy = convert.policy(request.policy) or ReloadPolicy.FINISH_RUNNING
        reports = await self._operator.reload(adapter, request.worker_ids, policy=policy)
        return convert.reports_to_proto(reports)

    async def _shown(self, adapter: Adapter) -> pb.Adapter:
        [problems] = await self._ledger.problems([adapter.key])
        return convert.adapter_to_proto(adapter, problems)


def _key(tenant: str, name: str) -> AdapterKey:
    return AdapterKey(tenant_of(tenant), name)
