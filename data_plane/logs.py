"""Logs: structured lines on standard error. Secrets and prompts never reach them.

Owns the format only. Tracebacks come without the values of variables: a step's plan holds token ids
of prompts, which are not for a log.
"""

import logging
import sys

import structlog


def configure(level: str) -> None:
    """Set up logging for the process."""
    renderer = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
