"""The start of a worker: settings → runtime → engine → serve.

Owns which thread loads the model. What stops the start is raised; the process's exit code is made of it
in `__main__`.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import uvloop

from data_plane.api.tls import Tls
from data_plane.config import WorkerSettings
from data_plane.engine.assemble import build_engine
from data_plane.engine.runtime import build_runtime
from data_plane.engine.start_report import log_start
from data_plane.worker import Worker


def serve(settings: WorkerSettings) -> int:
    """Start a worker and serve until it ends; return the exit code. Raises WorkerError and OSError."""
    key = _read_key(settings.worker_key_file)
    tls = _read_tls(settings)
    # One thread loads the model and steps: OpenMP keeps a team for every thread that ever computed in
    # parallel, and with more threads than cores its teams sleep at once (data_plane/openmp.py).
    executor = ThreadPoolExecutor(1, thread_name_prefix="engine")
    runtime = executor.submit(build_runtime, settings).result()
    engine = build_engine(runtime, settings)
    log_start(settings, runtime)

    async def run() -> int:
        return await Worker(settings, runtime, engine, key=key, tls=tls, executor=executor).run()

    return uvloop.run(run())


def _read_key(path: Path | None) -> str:
    return path.read_text().strip() if path else ""


def _read_tls(settings: WorkerSettings) -> Tls:
    return Tls.read(
        settings.tls_cert_file,
        settings.tls_key_file,
        settings.tls_ca_file,
        require_client_certificate=settings.tls_require_client_cert,
    )
