"""The `loraplane` command: a client of the gRPC API. `up` also starts the processes.

Prints tables for people and, with `--json`, one JSON document for programs. Exit codes: 0 done,
1 the call failed (one line says the status, the field and what to do), 2 wrong usage.
"""

from control_plane.cli.main import app

__all__ = ["app"]
