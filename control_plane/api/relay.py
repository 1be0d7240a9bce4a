"""Relay: a client's request to a worker, and the worker's stream back, byte for byte.

Owns the way of one request: resolve, reserve, route, grant, forward, settle. Invariants: another
worker is tried only before the first message, because after it the client has seen tokens of this
one; the worker's call ends with the client's, however that ends.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import grpc

from control_plane.access.grants import Grant, GrantSigner
from control_plane.api.admission import Admission, Admitted
from control_plane.api.calls import Call, Generate, granted, own_adapter, wanted
from control_plane.api.carrier import Metadata, Outgoing
from control_plane.api.channels import Channels
from control_plane.api.endings import noted
from control_plane.api.in_flight import InFlight
from control_plane.api.meter import Meter, completion_bound, prompt_bound
from control_plane.api.residency import Residency
from control_plane.api.status import DETAILS_METADATA
from control_plane.errors import NoWorker
from control_plane.placement.route import route
from control_plane.registry.service import Registry
from control_plane.registry.trials import Trials
from control_plane.registry.types import Target
from control_plane.workers.fleet import Fleet
from control_plane.workers.types import Worker

GRANT = "loraplane-grant"
REQUEST_ID = "loraplane-request-id"
Write = Callable[[bytes], Awaitable[object]]


@dataclass(slots=True)
class _Delivery:
    """A generation's messages on their way to its client, metered."""

    meter: Meter
    admitted: Admitted
    write: Write
    begun: bool = False

    async def deliver(self, message: bytes) -> None:
        self.begun = True
        self.meter.read(message)
        if self.meter.finished:
            # Before the client hears of the end, so that its next request finds it settled.
            await self.admitted.settle()
        await self.write(message)


@dataclass(slots=True)
class _Attempts:
    """Which workers one request was sent to, and what the last one said."""

    excluded: set[str] = field(default_factory=set)
    error: grpc.aio.AioRpcError | None = None


class Relay:
    """Passes requests to workers."""

    def __init__(
        self,
        *,
        registry: Registry,
        fleet: Fleet,
        admission: Admission,
        residency: Residency,
        trials: Trials,
        channels: Channels,
        in_flight: InFlight,
        signer: GrantSigner,
        grant_ttl_s: float,
    ) -> None:
        self._registry = registry
        self._fleet = fleet
        self._admission = admission
        self._residency = residency
        self._trials = trials
        self._channels = channels
        self._signer = signer
        self._grant_ttl_s = grant_ttl_s
        self._in_flight = in_flight

    async def generate(self, request: Generate, call: Call, write: Write) -> None:
        """Stream one generation."""
        # Without a routing key each request draws its own revision.
        routing_key = request.message.routing_key or call.request_id
        target = await self._target(call.tenant, request.message.model, routing_key)
        meter = Meter(prompt_bound(request.message))
        max_tokens = completion_bound(request.message.sampling)
        admission = self._admission.admit(
            call.tenant,
            call.request_id,
            meter,
            completion_tokens=max_tokens,
            adapter=own_adapter(target, call.tenant),
            owner=target.adapter.key.tenant if target.adapter else "",
        )
        async with admission as admitted:
            with noted(self._trials, target, meter, call):
                delivery = _Delivery(meter, admitted, write)
                await self._forward(request.raw, target, call, max_tokens, delivery)

    async def tokenize(self, raw: bytes, model: str, call: Call) -> bytes:
        """Tokenize on any worker of the model."""
        target = await self._target(call.tenant, model, call.request_id)
        attempts = _Attempts()
        while True:
            worker = self._next(target, attempts)
            metadata = self._metadata(target, call, worker, 0)
            try:
                line = self._channels.to(worker)
                return await line.tokenize(raw, timeout_s=call.timeout_s, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                _try_elsewhere(attempts, worker, error)

    async def _target(self, tenant: str, model: str, routing_key: str) -> Target:
        return await self._registry.resolve(tenant, model, self._fleet.base_models(), routing_key)

    async def _forward(
        self, raw: bytes, target: Target, call: Call, max_tokens: int, delivery: _Delivery
    ) -> None:
        attempts, admitted = _Attempts(), delivery.admitted
        while True:
            worker = self._next(target, attempts)
            await admitted.hold(await self._residency.claim(target, worker, admitted.reservation))
            outgoing = Outgoing(raw, call.timeout_s, self._metadata(target, call, worker, max_tokens))
            try:
                with self._in_flight.sent(worker.worker_id):
                    return await self._channels.to(worker).generate(outgoing, delivery.deliver)
            except grpc.aio.AioRpcError as error:
                if delivery.begun:
                    raise _failure(worker, error) from error
                _try_elsewhere(attempts, worker, error)

    def _next(self, target: Target, attempts: _Attempts) -> Worker:
        try:
            return route(
                wanted(target),
                self._fleet.workers(),
                in_flight=self._in_flight.counts,
                excluded=attempts.excluded,
            )
        except NoWorker:
            # What a worker said is worth more than that there is no other.
            if attempts.error is not None and _has_details(attempts.error):
                raise attempts.error from None
            raise

    def _metadata(self, target: Target, call: Call, worker: Worker, max_tokens: int) -> Metadata:
        grant = self._signer.sign(
            Grant(
                request_id=call.request_id,
                tenant=call.tenant,
                worker_id=worker.worker_id,
                base_model=worker.base_model,
                max_tokens=max_tokens,
                expires_in_s=self._grant_ttl_s,
                adapter=granted(target),
            )
        )
        return ((GRANT, grant), (REQUEST_ID, call.request_id), *call.trace)


def _try_elsewhere(attempts: _Attempts, worker: Worker, error: grpc.aio.AioRpcError) -> None:
    """Go on with another worker when this one is away or drains; else raise."""
    if error.code() is not grpc.StatusCode.UNAVAILABLE:
        raise _failure(worker, error) from error
    attempts.excluded.add(worker.worker_id)
    attempts.error = error


def _failure(worker: Worker, error: grpc.aio.AioRpcError) -> Exception:
    """What a worker said goes to the client as it is; that it fell silent, as NoWorker."""
    if error.code() is grpc.StatusCode.UNAVAILABLE and not _has_details(error):
        return NoWorker(f"worker {worker.worker_id!r} went away during the request")
    return error


def _has_details(error: grpc.aio.AioRpcError) -> bool:
    return any(key == DETAILS_METADATA for key, _ in error.trailing_metadata() or ())
