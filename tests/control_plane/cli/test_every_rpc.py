"""Every RPC that is served has a command that calls it: what the server serves against what commands ask for.

Each command is run against a server that writes down which method was called and refuses it.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection
from typer.testing import CliRunner

from control_plane.api.server import SERVICES
from control_plane.cli import app
from tests.control_plane.cli.tree import COMMANDS, least_arguments

NOT_FOR_PEOPLE = {
    "/loraplane.sync.v1.WorkerSync/Sync": "workers keep it; `worker list` shows what they say there",
    "/grpc.health.v1.Health/Check": "probes of orchestrators and load balancers",
    "/grpc.health.v1.Health/List": "the same",
    "/grpc.health.v1.Health/Watch": "the same",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": "for tools like grpcurl",
}
# What a command calls only when it is told to.
TOLD = {("generate",): [["--direct"]]}


class Witness(grpc.GenericRpcHandler):
    """Writes down every call, and refuses it."""

    def __init__(self) -> None:
        self.called: set[str] = set()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        self.called.add(details.method)

        def refuse(request: bytes, context: Any) -> None:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "written down")

        return grpc.unary_unary_rpc_method_handler(refuse)


@pytest.fixture
def witness() -> Iterator[tuple[Witness, str]]:
    written = Witness()
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((written,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield written, f"127.0.0.1:{port}"
    server.stop(None).wait()


def served() -> set[str]:
    pool = descriptor_pool.Default()
    services = [
        pool.FindServiceByName(name) for name in (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
    ]
    return {f"/{service.full_name}/{method.name}" for service in services for method in service.methods}


def test_every_rpc_has_a_command_that_calls_it(witness: tuple[Witness, str], tmp_path: Path) -> None:
    written, endpoint = witness
    runner = CliRunner(env={"LORAPLANE_STATE_DIR": str(tmp_path)})
    for path, command in COMMANDS.items():
        if not any("--key" in parameter.opts for parameter in command.params):
            continue  # it calls nobody
        for more in ([], *TOLD.get(path, ())):
            result = runner.invoke(app, [*path, *least_arguments(path), *more, "--endpoint", endpoint])
            assert result.exit_code == 1, f"{path}: {result.output}"
    assert served() - written.called == set(NOT_FOR_PEOPLE)
    assert written.called <= served(), "a command calls what is not served"


def test_what_is_not_for_people_has_a_reason() -> None:
    assert all(NOT_FOR_PEOPLE.values())
    assert set(NOT_FOR_PEOPLE) <= served(), "it is not served any more"
