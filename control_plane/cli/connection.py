"""Where the control plane is and which key to show it.

Both come from flags, else from the environment, else from the file that `loraplane up` wrote.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc

from control_plane.addresses import is_loopback

DEFAULT_ENDPOINT = "127.0.0.1:8470"
DEFAULT_STATE_DIR = Path(".loraplane")
CLIENT_FILE = "client.json"
TRUE = frozenset({"1", "true", "yes", "on", "t", "y"})  # as the settings of the processes read it


class PlainTextRefused(OSError):
    """A key would travel to another machine unencrypted."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(
            f"{endpoint!r} is beyond this machine and would get keys and prompts in plain text: give "
            "--tls-ca-file (LORAPLANE_TLS_CA_FILE), or --allow-insecure (LORAPLANE_ALLOW_INSECURE)"
        )


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: whom to trust (None: plain text), and what to show a server that asks for it."""

    authority: Path | None = None
    certificate: Path | None = None
    private_key: Path | None = None
    allow_insecure: bool = False  # plain text beyond this machine too

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "TlsFiles":
        """The files that the processes' own settings name."""
        names = ("LORAPLANE_TLS_CA_FILE", "LORAPLANE_TLS_CERT_FILE", "LORAPLANE_TLS_KEY_FILE")
        allowed = environment.get("LORAPLANE_ALLOW_INSECURE", "").lower() in TRUE
        authority, certificate, key = (Path(environment[n]) if environment.get(n) else None for n in names)
        return cls(authority, certificate, key, allowed)

    def channel(self, endpoint: str, server_name: str = "") -> grpc.Channel:
        """Open a channel; raise OSError when a file cannot be read, PlainTextRefused without any.

        `server_name` is the name in the certificate when it is not the endpoint's host.
        """
        if self.authority is None:
            if not (self.allow_insecure or is_loopback(endpoint)):
                raise PlainTextRefused(endpoint)
            return grpc.insecure_channel(endpoint)
        pair: tuple[bytes | None, bytes | None] = (None, None)
        if self.certificate is not None and self.private_key is not None:
            pair = (self.private_key.read_bytes(), self.certificate.read_bytes())
        credentials = grpc.ssl_channel_credentials(self.authority.read_bytes(), *pair)
        options = (("grpc.ssl_target_name_override", server_name),) if server_name else ()
        return grpc.secure_channel(endpoint, credentials, options)


PLAIN = TlsFiles()


@dataclass(frozen=True, slots=True)
class Connection:
    """An endpoint and the key to use there."""

    endpoint: str
    key: str
    tls: TlsFiles = PLAIN

    def __repr__(self) -> str:
        return f"Connection(endpoint={self.endpoint!r}, key='***')"

    def channel(self) -> grpc.Channel:
        """Open a channel to the control plane."""
        return self.tls.channel(self.endpoint)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Metadata of every call."""
        return (("authorization", f"Bearer {self.key}"),) if self.key else ()


def connect(endpoint: str | None, key: str | None, state_dir: Path, tls: TlsFiles = PLAIN) -> Connection:
    """Fill what is not given from the file that `up` wrote under `state_dir`."""
    written = _read(state_dir / CLIENT_FILE)
    if key is None and "key_file" in written:
        key = Path(written["key_file"]).read_text().strip()
    return Connection(endpoint or written.get("endpoint", DEFAULT_ENDPOINT), key or "", tls)


def write_client_file(state_dir: Path, endpoint: str, key_file: Path) -> None:
    """Remember an endpoint for the commands that follow."""
    content = {"endpoint": endpoint, "key_file": str(key_file)}
    (state_dir / CLIENT_FILE).write_text(json.dumps(content, indent=2) + "\n")


def _read(path: Path) -> dict[str, str]:
    try:
        content: dict[str, str] = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    return content
