"""Surface: every RPC that a server serves, as the server itself says by reflection.

No list is kept here: a new RPC is fuzzed from the day it is served.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc


@dataclass(frozen=True, slots=True)
class Rpc:
    """One method of one plane's server."""

    plane: str
    descriptor: MethodDescriptor

    @property
    def method(self) -> str:
        """`/package.Service/Method`."""
        return f"/{self.descriptor.containing_service.full_name}/{self.descriptor.name}"

    @property
    def request(self) -> type[Message]:
        return GetMessageClass(self.descriptor.input_type)

    @property
    def response(self) -> type[Message]:
        return GetMessageClass(self.descriptor.output_type)

    def __str__(self) -> str:
        return f"{self.plane} {self.method}"


async def served(plane: str, channel: grpc.aio.Channel) -> Sequence[Rpc]:
    """The RPCs of the server at the other end of the channel, in order of their names."""
    call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
        iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    )
    names = [service.name async for answer in call for service in answer.list_services_response.service]
    pool = descriptor_pool.Default()
    return [Rpc(plane, method) for name in sorted(names) for method in pool.FindServiceByName(name).methods]
