"""The worker's Inference service: one call a generation, for whoever brings a grant by itself."""

from collections.abc import AsyncIterator

from data_plane.api.generations import Generations, WorkerIdentity
from data_plane.api.grants import GrantVerifier, token_of
from data_plane.api.interceptors import Context
from data_plane.api.mailbox import Mailbox
from data_plane.api.prompts import Prompts
from data_plane.errors import GrantRefused
from protos.inference.v1 import inference_pb2 as pb
from protos.inference.v1 import inference_pb2_grpc


class InferenceServicer(inference_pb2_grpc.InferenceServicer):
    """Generate and Tokenize for callers with a grant."""

    def __init__(
        self, generations: Generations, prompts: Prompts, grants: GrantVerifier, identity: WorkerIdentity
    ) -> None:
        self._generations = generations
        self._prompts = prompts
        self._grants = grants
        self._identity = identity

    async def Generate(
        self, request: pb.GenerateRequest, context: Context
    ) -> AsyncIterator[pb.GenerateResponse]:
        """Stream one generation."""
        token = token_of(context.invocation_metadata())
        async with self._generations.admit(request, token, context.time_remaining()) as generation:
            mailbox = Mailbox()
            generation.start(mailbox)
            while not generation.ended:
                for event in await mailbox.take():
                    yield generation.message(event)

    async def Route(self, request: pb.RouteRequest, context: Context) -> pb.RouteResponse:
        """Whom to ask is the control plane's to say."""
        raise GrantRefused("a worker gives no grants: call Route of the control plane")

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        """The base model; which adapters a tenant may use is the control plane's to say."""
        model = pb.Model(id=self._identity.base_model, digest=self._identity.base_digest)
        return pb.ListModelsResponse(models=[model])

    async def Tokenize(self, request: pb.TokenizeRequest, context: Context) -> pb.TokenizeResponse:
        """Tokenize as Generate would."""
        self._grants.verify(token_of(context.invocation_metadata()))
        ids = await self._prompts.token_ids(request)
        return pb.TokenizeResponse(token_ids=ids, max_model_len=self._identity.max_model_len)
