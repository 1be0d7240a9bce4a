"""Routes: the direct way of a generation, where its messages skip this process.

Owns the admission of such a request: resolve, reserve, choose a worker, claim its slot, sign. What
it used is the worker's to report (`workers.direct`). Invariant: whoever gets a grant holds a
reservation for all that it allows, and one that is refused holds none.
"""

from dataclasses import dataclass

from control_plane.access.grants import DirectTerms, Grant, GrantSigner
from control_plane.api.admission import Admitted
from control_plane.api.calls import Call, granted, own_adapter, wanted
from control_plane.api.in_flight import InFlight
from control_plane.api.meter import DEFAULT_MAX_TOKENS, Meter
from control_plane.api.residency import Residency
from control_plane.errors import InvalidArgument
from control_plane.placement.route import route
from control_plane.quotas.service import Quotas
from control_plane.quotas.slots import SlotClaims
from control_plane.registry.service import Registry
from control_plane.registry.types import Target
from control_plane.workers.fleet import Fleet
from control_plane.workers.prefetch import Prefetch
from control_plane.workers.types import Worker
from protos.inference.v1 import inference_pb2 as pb


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteSettings:
    """What does not change while the process runs."""

    grant_ttl_s: float
    tls_server_name: str = ""  # in the workers' certificates; empty: the host of their address


class Routes:
    """Admits requests whose clients call workers by themselves."""

    def __init__(
        self,
        settings: RouteSettings,
        *,
        registry: Registry,
        fleet: Fleet,
        quotas: Quotas,
        slots: SlotClaims,
        residency: Residency,
        prefetch: Prefetch,
        in_flight: InFlight,
        signer: GrantSigner,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._fleet = fleet
        self._quotas = quotas
        self._slots = slots
        self._residency = residency
        self._prefetch = prefetch
        self._in_flight = in_flight
        self._signer = signer

    async def route(self, request: pb.RouteRequest, call: Call) -> pb.RouteResponse:
        """Admit one request; raise QuotaExceeded, NotFound, NoWorker or StoreUnavailable.

        While Redis is away nothing is admitted, whatever the local share: nobody would hear of its use.
        """
        prompt_tokens = _at_least_1("prompt_tokens", request.prompt_tokens)
        max_tokens = DEFAULT_MAX_TOKENS
        if request.HasField("max_tokens"):
            max_tokens = _at_least_1("max_tokens", request.max_tokens)
        routing_key = request.routing_key or call.request_id
        target = await self._registry.resolve(
            call.tenant, request.model, self._fleet.base_models(), routing_key
        )
        admitted = await self._reserve(target, call, prompt_tokens, max_tokens)
        try:
            worker = route(wanted(target), self._fleet.workers(), in_flight=self._in_flight.counts)
            claim = await self._residency.claim(target, worker, admitted.reservation)
            await admitted.hold(claim)
        except BaseException:
            await admitted.settle()  # nothing has started: everything comes back
            raise
        self._in_flight.told(worker.worker_id)
        terms = DirectTerms(
            instance_id=worker.instance_id,
            max_prompt_tokens=prompt_tokens,
            cold_load_charged=claim.charged if claim is not None else None,
            loads=self._prefetch.hint(target, worker),
        )
        return self._answer(target, call, worker, max_tokens, terms)

    async def _reserve(self, target: Target, call: Call, prompt_tokens: int, max_tokens: int) -> Admitted:
        reservation = await self._quotas.reserve(
            call.tenant, call.request_id, prompt_tokens + max_tokens, own_adapter(target, call.tenant)
        )
        owner = target.adapter.key.tenant if target.adapter else ""
        return Admitted(self._quotas, self._slots, reservation, Meter(prompt_tokens), owner=owner)

    def _answer(
        self, target: Target, call: Call, worker: Worker, max_tokens: int, terms: DirectTerms
    ) -> pb.RouteResponse:
        adapter = granted(target)
        grant = Grant(
            request_id=call.request_id,
            tenant=call.tenant,
            worker_id=worker.worker_id,
            base_model=worker.base_model,
            max_tokens=max_tokens,
            expires_in_s=self._settings.grant_ttl_s,
            adapter=adapter,
            direct=terms,
        )
        return pb.RouteResponse(
            request_id=call.request_id,
            worker_id=worker.worker_id,
            address=worker.address,
            tls_server_name=self._settings.tls_server_name,
            grant=self._signer.sign(grant),
            ttl_s=self._settings.grant_ttl_s,
            base_model=worker.base_model,
            adapter=adapter.name if adapter else "",
            revision=adapter.revision if adapter else 0,
            digest=adapter.digest if adapter else worker.base_model_digest,
        )


def _at_least_1(field: str, value: int) -> int:
    if value < 1:
        raise InvalidArgument(field, value, "must be at least 1")
    return value
