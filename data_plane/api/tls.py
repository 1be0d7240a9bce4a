"""TLS: this worker's certificate and whom it trusts, as what gRPC wants of them.

One certificate a process: it is the server's, and the client's where the control plane asks for one.
Nothing is read again while the process runs: a new certificate needs a restart.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc

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
    ) -> Self:
        """Read the files; raise OSError when one cannot be read."""
        return cls(
            certificate=certificate.read_bytes() if certificate else None,
            private_key=private_key.read_bytes() if private_key else None,
            authority=authority.read_bytes() if authority else None,
            require_client_certificate=require_client_certificate,
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

    def dial(self, address: str) -> grpc.aio.Channel:
        """Return a channel to the control plane: encrypted when an authority is trusted, else plain."""
        if self.authority is None:
            return grpc.aio.insecure_channel(address, options=CLIENT_OPTIONS)
        credentials = grpc.ssl_channel_credentials(self.authority, self.private_key, self.certificate)
        return grpc.aio.secure_channel(address, credentials, options=CLIENT_OPTIONS)


CLIENT_OPTIONS: Options = (
    *KEEPALIVE,
    # gRPC's own back-off grows to two minutes: a control plane that comes back must not wait for it.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # And one that accepts but never answers is left for the next address after this, not after 20 s.
    ("grpc.min_reconnect_backoff_ms", 2_000),
)
SERVER_OPTIONS: Options = (
    # Whoever calls pings every 5 s while a request runs; by default gRPC takes two pings without data in
    # five minutes for an attack, and ends the connection.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 2_500),
    *KEEPALIVE,  # a client that is cut off neither reads nor leaves: its request would run to its end
)
