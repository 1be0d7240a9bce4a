"""Exporter: the metrics port of this process.

Owns one HTTP server on threads of its own (prometheus-client's), so that a scrape waits for neither
the event loop nor the step loop. Knows no metric.
"""

from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Self
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server

from data_plane.errors import InvalidRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class ExporterTls:
    """PEM files; without a certificate the port is plain HTTP."""

    certificate: Path | None = None
    private_key: Path | None = None
    authority: Path | None = None  # whose certificates scrapers must show; None: they need none


PLAIN = ExporterTls()


class Exporter:
    """Serves `/metrics` until it is closed."""

    def __init__(self, server: WSGIServer, thread: Thread, address: str) -> None:
        self._server = server
        self._thread = thread
        self.address = address  # with the port it got

    @classmethod
    def start(cls, listen: str, registry: CollectorRegistry, tls: ExporterTls = PLAIN) -> Self:
        """Listen on host:port (0: any free port); raise InvalidRequest when that cannot be."""
        host, _, port = listen.rpartition(":")
        try:
            server, thread = start_http_server(
                int(port),
                addr=host.strip("[]"),
                registry=registry,
                certfile=str(tls.certificate) if tls.certificate else None,
                keyfile=str(tls.private_key) if tls.private_key else None,
                client_cafile=str(tls.authority) if tls.authority else None,
                client_auth_required=tls.authority is not None,
            )
        except (OSError, ValueError) as error:
            raise InvalidRequest("metrics_listen", listen, f"cannot be listened on: {error}") from error
        return cls(server, thread, f"{host}:{server.server_port}")

    def close(self) -> None:
        """Give the port back."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
