"""Inference for clients: generation and tokenizing are relayed or routed, models are the registry's.

Generate and Tokenize are registered with raw bytes on both sides, so that a message passes from
worker to client without being decoded and encoded again.
"""

from contextlib import aclosing
from typing import Any

import grpc

from control_plane.api import convert, paging
from control_plane.api.caller import Context, inference_tenant, request_id
from control_plane.api.calls import Call, Generate, Tokenize
from control_plane.api.relay import Relay
from control_plane.api.route import Routes
from control_plane.registry.service import Registry
from control_plane.workers.fleet import Fleet
from protos.inference.v1 import inference_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["Inference"].full_name
TRACE_METADATA = ("traceparent", "tracestate")


class InferenceServicer:
    """Generate, Route, ListModels, Tokenize."""

    def __init__(self, relay: Relay, routes: Routes, registry: Registry, fleet: Fleet) -> None:
        self._relay = relay
        self._routes = routes
        self._registry = registry
        self._fleet = fleet

    async def Generate(self, request: Generate, context: Context) -> None:
        """Relay one generation."""
        await self._relay.generate(request, _call(request.message.model, context), context.write)

    async def Route(self, request: pb.RouteRequest, context: Context) -> pb.RouteResponse:
        """Admit one generation that its client brings to a worker by itself."""
        return await self._routes.route(request, _call(request.model, context))

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        """Return base models and the adapters that the caller may use, with their lineage."""
        tenant = inference_tenant("")
        size, after = paging.begin(request.page_size, request.page_token)
        bases = [convert.base_to_model(worker) for worker in self._fleet.base_workers()]
        models = [base for base in bases if base.id > after]
        limit = len(models) + size + 1
        async with aclosing(self._registry.visible(tenant, after, chunk=size + 1)) as adapters:
            async for adapter in adapters:
                models.append(convert.adapter_to_model(adapter, tenant=tenant))
                if len(models) == limit:
                    break
        page, token = paging.end(models, size)
        return pb.ListModelsResponse(models=page, next_page_token=token)

    async def Tokenize(self, request: Tokenize, context: Context) -> bytes:
        """Relay a prompt to tokenize."""
        return await self._relay.tokenize(request.raw, request.model, _call(request.model, context))


def handlers(servicer: InferenceServicer) -> grpc.GenericRpcHandler:
    """Return the service's handlers, to be added to a server."""
    methods: dict[str, Any] = {
        "Generate": grpc.unary_stream_rpc_method_handler(servicer.Generate, Generate.parse, None),
        "Route": grpc.unary_unary_rpc_method_handler(
            servicer.Route, pb.RouteRequest.FromString, pb.RouteResponse.SerializeToString
        ),
        "ListModels": grpc.unary_unary_rpc_method_handler(
            servicer.ListModels,
            pb.ListModelsRequest.FromString,
            pb.ListModelsResponse.SerializeToString,
        ),
        "Tokenize": grpc.unary_unary_rpc_method_handler(servicer.Tokenize, Tokenize.parse, None),
    }
    return grpc.method_handlers_generic_handler(SERVICE, methods)


def _call(model: str, context: Any) -> Call:
    metadata = dict(context.invocation_metadata() or ())
    return Call(
        tenant=inference_tenant(model),
        request_id=request_id(),
        timeout_s=context.time_remaining(),
        trace=tuple((key, metadata[key]) for key in TRACE_METADATA if key in metadata),
    )
