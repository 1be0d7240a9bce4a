"""Generations: what every request with a grant goes through, whichever way it came.

Owns its grant, prompt, limits, account and metrics. Does not know how messages travel. Invariant: leaving
early, for whatever reason, frees the request's blocks and lease within one step.
"""

import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from data_plane.api import convert
from data_plane.api.grants import Grant, GrantVerifier
from data_plane.api.mailbox import Sink
from data_plane.api.prompts import Prompts
from data_plane.api.tally import Tally
from data_plane.direct import DirectRequests
from data_plane.engine.events import Event, Failed, Finished, GenerationRequest
from data_plane.engine.thread import EngineThread
from data_plane.errors import GrantRefused, InvalidRequest
from data_plane.metrics.requests import RequestMetrics, RequestWatch
from data_plane.scheduler.sampling import SamplingParams
from protos.inference.v1 import inference_pb2 as pb


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerIdentity:
    """What receipts say of this worker."""

    worker_id: str
    base_model: str
    base_digest: str
    max_model_len: int


class Generations:
    """Lets requests into the engine."""

    def __init__(
        self,
        *,
        engine: EngineThread[Sink],
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

    @asynccontextmanager
    async def admit(
        self, request: pb.GenerateRequest, token: str | None, remaining_s: float | None
    ) -> AsyncIterator["Generation"]:
        """Admit a request with its grant, for the time of the block; raise WorkerError."""
        grant = self._grants.admit(token)
        with self._accounted(grant) as tally:
            admitted = await self._request(request, grant, remaining_s)
            generation = Generation(
                self._engine, admitted, tally, self._metrics.begin(admitted), self._message
            )
            try:
                yield generation
            finally:
                generation.leave()

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

    async def _request(
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


class Generation:
    """One admitted request."""

    def __init__(
        self,
        engine: EngineThread[Sink],
        request: GenerationRequest,
        tally: Tally,
        watch: RequestWatch,
        to_message: Callable[[Event, int], pb.GenerateResponse],
    ) -> None:
        self._engine = engine
        self._request = request
        self._tally = tally
        self._watch = watch
        self._to_message = to_message
        self._num_prompt = len(request.prompt_ids)
        self.ended = False

    def start(self, sink: Sink) -> None:
        """Hand the request to the engine; its events go to `sink`, and from there through `message`."""
        self._engine.submit(self._request, sink)

    def message(self, event: Event) -> pb.GenerateResponse:
        """Account for an event and return it as it is sent; raise the error of a Failed."""
        self.ended = isinstance(event, Finished | Failed)
        self._tally.read(event, self._num_prompt)
        self._watch.see(event)
        return self._to_message(event, self._num_prompt)

    def leave(self) -> None:
        """The request has ended, or nobody waits for it any more."""
        self._watch.end()
        if not self.ended:
            self._engine.cancel(self._request.request_id)


def _check_limits(grant: Grant, sampling: SamplingParams, num_prompt: int) -> None:
    wanted = sampling.max_tokens * sampling.n
    if wanted > grant.max_tokens:
        raise GrantRefused(f"the grant allows {grant.max_tokens} new tokens, the request asks for {wanted}")
    if grant.direct is not None and num_prompt > grant.direct.max_prompt_tokens:
        most = grant.direct.max_prompt_tokens
        raise GrantRefused(f"the grant allows {most} tokens of prompt, the request has {num_prompt}")
