"""Endpoints: where a replica listens, for calls and for scrapes, and with which certificates."""

import grpc
import structlog

from control_plane.api.tls import Tls
from control_plane.config import ControlSettings
from control_plane.errors import InvalidArgument
from control_plane.metrics.exporter import Exporter, ExporterTls
from control_plane.metrics.replica import ReplicaMetrics

_log = structlog.get_logger(__name__)


def read_tls(settings: ControlSettings) -> Tls:
    """The certificates of a replica; none: it serves plaintext."""
    return Tls.read(
        settings.tls_cert_file,
        settings.tls_key_file,
        settings.tls_ca_file,
        require_client_certificate=settings.tls_require_client_cert,
        worker_name=settings.tls_worker_name,
    )


def export(settings: ControlSettings, metrics: ReplicaMetrics) -> Exporter | None:
    """Serve metrics from now on; None when nobody is to read them."""
    if not settings.metrics_listen:
        return None
    tls = ExporterTls(
        certificate=settings.tls_cert_file,
        private_key=settings.tls_key_file,
        authority=settings.tls_ca_file if settings.tls_require_client_cert else None,
    )
    exporter = Exporter.start(settings.metrics_listen, metrics.registry, tls)
    _log.info("metrics are served", metrics_address=exporter.address)
    return exporter


def listen(server: grpc.aio.Server, address: str, tls: Tls) -> str:
    """Listen, and return where, with the port that it got; raise InvalidArgument."""
    try:
        port = tls.listen(server, address)
    except RuntimeError as error:
        raise InvalidArgument("listen", address, "cannot be listened on: is it in use?") from error
    if address.startswith("unix:"):
        return address
    return f"{address.rpartition(':')[0]}:{port}"
