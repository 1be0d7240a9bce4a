"""A worker process: settings, then the rest. A bad setting is one message and exit code 2.

Arguments are parsed before anything that computes is imported: torch and transformers take seconds,
and neither `--help` nor a refusal needs them.
"""

import sys

from pydantic import ValidationError

from data_plane import logs
from data_plane.config import WorkerSettings, explained
from data_plane.errors import WorkerError


def main() -> int:
    """Start a worker and serve; return the exit code."""
    try:
        settings = WorkerSettings(_cli_parse_args=True)  # type: ignore[call-arg]
        logs.configure(settings.log_level)
        from data_plane.startup import serve  # noqa: PLC0415 - imports torch

        return serve(settings)
    except ValidationError as error:
        reason = explained(error)
    except (WorkerError, OSError) as error:
        reason = str(error)
    print(f"worker does not start: {reason}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
