"""TLS: this replica's certificate and whom it trusts, as what gRPC wants of them.

One certificate a process: it is the server's, and the client's where the other side asks for one.
Nothing is read again while the process runs: new certificates need a restart (one replica at a time).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc

from control_plane.errors import InvalidArgument

Options = tuple[tuple[str, Any], ...]
# A peer behind a cut network says nothing at all: pings end what runs over it within 8 s. Keepalive alone
# does not: while messages flow, gRPC sends pings of its own (to measure bandwidth), a keepalive ping
# waits behind one that is out, and that one's own time-out is 60 s.
KEEPALIVE: Options = (
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.ping_timeout_ms", 3_000),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """PEM texts; None where there is none."""

    certificate: bytes | None = None
    private_key: bytes | None = None
    authority: bytes | None = None  # whose certificates are trusted
    require_client_certificate: bool = False
    worker_name: str = ""  # in workers' certificates; empty: the host of their address

    def __repr__(self) -> str:
        return f"Tls(certificate={self.certificate is not None}, authority={self.authority is not None})"

    @classmethod
    def read(
        cls,
        certificate: Path | None,
        private_key: Path | None,
        authority: Path | None,
        *,
        require_client_certificate: bool,
        worker_name: str,
    ) -> Self:
        """Read the files; raise InvalidArgument naming one that cannot be read."""
        return cls(
            certificate=_read("tls_cert_file", certificate),
            private_key=_read("tls_key_file", private_key),
            authority=_read("tls_ca_file", authority),
            require_client_certificate=require_client_certificate,
            worker_name=worker_name,
        )

    def listen(self, server: grpc.aio.Server, address: str) -> int:
        """Have a server listen; return its port. Raises RuntimeError when it cannot."""
        if self.certificate is None or self.private_key is None:
            return server.add_insecure_port(address)
        credentials = grpc.ssl_server_credentials(
            [(self.private_key, self.certificate)],
            root_certificates=self.authority,
            require_client_auth=self.require_client_certificate,
        )
        return server.add_secure_port(address, credentials)

    def dial(self, address: str, options: Options) -> grpc.aio.Channel:
        """Return a channel to a worker: encrypted when an authority is trusted, else plain."""
        if self.authority is None:
            return grpc.aio.insecure_channel(address, options=options)
        credentials = grpc.ssl_channel_credentials(self.authority, self.private_key, self.certificate)
        if self.worker_name:
            options = (*options, ("grpc.ssl_target_name_override", self.worker_name))
        return grpc.aio.secure_channel(address, credentials, options=options)


def _read(field: str, path: Path | None) -> bytes | None:
    try:
        return path.read_bytes() if path else None
    except OSError as error:
        raise InvalidArgument(field, str(path), f"cannot be read: {error.strerror}") from error
