"""The worker's Inference service: verify the grant, submit, stream what the engine says."""

import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from data_plane.api import convert
from data_plane.api.grants import Grant, GrantVerifier
from data_plane.api.interceptors import Context
from data_plane.api.mailbox import Mailbox
from data_plane.api.prompts import Prompts
from data_plane.api.tally import Tally
from data_plane.direct import DirectRequests
from data_plane.engine.events import Event, Failed, Finished, GenerationRequest
from data_plane.engine.thread import EngineThread
from data_plane.errors import GrantRefused, InvalidRequest
from data_plane.metrics.requests import RequestMetrics
from data_plane.scheduler.sampling import SamplingParams
from protos.inference.v1 import inference_pb2 as pb
from protos.inference.v1 import inference_pb2_grpc

GRANT_METADATA = "loraplane-grant"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerIdentity:
    """What receipts say of this worker."""

    worker_id: str
    base_model: str
    base_digest: str
    max_model_len: int


class InferenceServicer(inference_pb2_grpc.InferenceServicer):
    """Generate and Tokenize for callers with a grant."""

    def __init__(
        self,
        *,
        engine: EngineThread[Mailbox],
        prompts: Prompts,
        grants: GrantVerifier,
        direct: DirectRequests,
        metrics: RequestMetrics,
        identity: WorkerIdentity,
    ) -> None:
        self._engine = engine
        self._prompts = prompts
        self._grants = grants
        self._direct = direct
        self._metrics = metrics
        self._identity = identity

    async def Generate(
        self, request: pb.GenerateRequest, context: Context
    ) -> AsyncIterator[pb.GenerateResponse]:
        """Stream one generation; leaving early, for whatever reason, frees its blocks and lease."""
        grant = self._grants.admit(_metadata(context, GRANT_METADATA))
        with self._accounted(grant) as tally:
            generation = await self._generation(request, grant, context.time_remaining())
            mailbox, num_prompt = Mailbox(), len(generation.prompt_ids)
            self._engine.submit(generation, mailbox)
            watch, ended = self._metrics.begin(generation), False
            try:
                while not ended:
                    for event in await mailbox.take():
                        ended = isinstance(event, Finished | Failed)
                        tally.read(event, num_prompt)
                        watch.see(event)
                        yield self._message(event, num_prompt)
            finally:
                watch.end()
                if not ended:
                    self._engine.cancel(generation.request_id)

    async def Route(self, request: pb.RouteRequest, context: Context) -> pb.RouteResponse:
        """Whom to ask is the control plane's to say."""
        raise GrantRefused("a worker gives no grants: call Route of the control plane")

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        """The base model; which adapters a tenant may use is the control plane's to say."""
        model = pb.Model(id=self._identity.base_model, digest=self._identity.base_digest)
        return pb.ListModelsResponse(models=[model])

    async def Tokenize(self, request: pb.TokenizeRequest, context: Context) -> pb.TokenizeResponse:
        """Tokenize as Generate would."""
        self._grants.verify(_metadata(context, GRANT_METADATA))
        ids = await self._prompts.token_ids(request)
        return pb.TokenizeResponse(token_ids=ids, max_model_len=self._identity.max_model_len)

    @contextmanager
    def _accounted(self, grant: Grant) -> Iterator[Tally]:
        """Count what is used; of a request that its client brought by itself nobody else can."""
        tally = Tally()
        if grant.direct is None:
            yield tally
            return
        self._direct.begin(grant.request_id, grant.direct.token)
        try:
            yield tally
        finally:
            self._direct.end(grant.request_id, tally.usage)

    async def _generation(
        self, request: pb.GenerateRequest, grant: Grant, remaining_s: float | None
    ) -> GenerationRequest:
        if request.HasField("structured_output"):
            raise InvalidRequest("structured_output", "set", "is not served by this worker yet")
        sampling = convert.sampling_from_proto(request.sampling)
        prompt_ids = await self._prompts.token_ids(request)
        _check_limits(grant, sampling, len(prompt_ids))
        return GenerationRequest(
            # Unique on this worker even when a client reuses its id on a retry.
            request_id=f"{grant.request_id}.{uuid.uuid4().hex[:6]}",
            prompt_ids=prompt_ids,
            sampling=sampling,
            adapter=grant.adapter,
            tenant=grant.tenant,
            priority=request.priority,
            deadline_s=None if remaining_s is None else time.monotonic() + remaining_s,
        )

    def _message(self, event: Event, prompt_tokens: int) -> pb.GenerateResponse:
        return convert.event_to_proto(
            event,
            worker_id=self._identity.worker_id,
            base_model=self._identity.base_model,
            base_digest=self._identity.base_digest,
            prompt_tokens=prompt_tokens,
            token_text=self._prompts.text_of,
        )


def _check_limits(grant: Grant, sampling: SamplingParams, num_prompt: int) -> None:
    wanted = sampling.max_tokens * sampling.n
    if grant.max_tokens is not None and wanted > grant.max_tokens:
        raise GrantRefused(f"the grant allows {grant.max_tokens} new tokens, the request asks for {wanted}")
    if grant.direct is not None and num_prompt > grant.direct.max_prompt_tokens:
        most = grant.direct.max_prompt_tokens
        raise GrantRefused(f"the grant allows {most} tokens of prompt, the request has {num_prompt}")


def _metadata(context: Context, key: str) -> str | None:
    for name, value in context.invocation_metadata() or ():
        if name == key:
            return value if isinstance(value, str) else value.decode()
    return None
