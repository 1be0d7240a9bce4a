"""Commands that talk to the control plane: one way to add one, with the options all of them share."""

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Concatenate, ParamSpec

import typer
from google.protobuf.message import Message

from control_plane.cli.connection import DEFAULT_STATE_DIR, Connection, TlsFiles, connect
from control_plane.cli.failures import reported
from control_plane.cli.output import print_json

P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class Session:
    """What a command needs to call the control plane and to print its answer."""

    connection: Connection
    as_json: bool

    def call(self, stub_type: Any, method: str, request: Message) -> Any:
        """One unary call."""
        with self.connection.channel() as channel:
            return getattr(stub_type(channel), method)(request, metadata=self.connection.metadata)

    def stream(self, stub_type: Any, method: str, request: Message) -> Iterator[Any]:
        """One call that streams; leaving the loop early cancels it."""
        with self.connection.channel() as channel:
            call = getattr(stub_type(channel), method)(request, metadata=self.connection.metadata)
            try:
                yield from call
            finally:
                call.cancel()

    def show(self, answer: Message, print_table: Callable[[Any], None]) -> None:
        """The answer as JSON or as a table."""
        if self.as_json:
            print_json(answer)
        else:
            print_table(answer)


def _pem(variable: str, meaning: str) -> object:
    return Annotated[Path | None, typer.Option(envvar=variable, help=meaning)]


_SHARED: dict[str, tuple[object, object]] = {
    "as_json": (False, Annotated[bool, typer.Option("--json", help="print JSON")]),
    "endpoint": (
        None,
        Annotated[
            str | None,
            typer.Option(envvar="LORAPLANE_ENDPOINT", help="host:port of the control plane"),
        ],
    ),
    "key": (None, Annotated[str | None, typer.Option(envvar="LORAPLANE_KEY", help="API key")]),
    "state_dir": (
        DEFAULT_STATE_DIR,
        Annotated[Path, typer.Option(envvar="LORAPLANE_STATE_DIR", help="where `up` keeps its state")],
    ),
    "tls_ca_file": (None, _pem("LORAPLANE_TLS_CA_FILE", "certificates of whom to trust; with it, TLS")),
    "tls_cert_file": (None, _pem("LORAPLANE_TLS_CERT_FILE", "certificate to show (mutual TLS)")),
    "tls_key_file": (None, _pem("LORAPLANE_TLS_KEY_FILE", "its private key")),
    "allow_insecure": (
        False,
        Annotated[
            bool,
            typer.Option(
                "--allow-insecure",
                envvar="LORAPLANE_ALLOW_INSECURE",
                help="send key and prompts in plain text beyond this machine too",
            ),
        ],
    ),
}


def command(
    app: typer.Typer, name: str | None = None
) -> Callable[[Callable[Concatenate[Session, P], None]], Callable[Concatenate[Session, P], None]]:
    """Add `function(session, …)` to an app; `session` comes from the shared options."""

    def add(function: Callable[Concatenate[Session, P], None]) -> Callable[Concatenate[Session, P], None]:
        @functools.wraps(function)
        def run(**given: Any) -> None:
            as_json, endpoint, key, state_dir, *tls = (given.pop(option) for option in _SHARED)
            with reported():
                connection = connect(endpoint, key, state_dir, TlsFiles(*tls))
                function(Session(connection, as_json), **given)  # type: ignore[call-arg]

        own = list(inspect.signature(function).parameters.values())[1:]
        shared = [
            inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for option, (default, annotation) in _SHARED.items()
        ]
        # Typer reads both; the wrapped function's own would hide the shared options.
        run.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *shared)}
        app.command(name)(run)
        return function

    return add
