"""Logs: structured lines on standard error, as text or JSON. Secrets never reach them.

Owns the format only; what is logged is said where it happens. The context of a call (request id,
tenant, method) is added by the interceptor. Tracebacks come without the values of variables, which structlog
would show: among those of a call are its metadata, and there its API key.
"""

import logging
import sys
from typing import Literal

import structlog
from structlog.typing import EventDict, WrappedLogger

_SECRET_NAMES = ("authorization", "secret", "password", "grant", "private_key", "token_value")
_TRACEBACKS = structlog.processors.ExceptionRenderer(
    structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
)


def configure(*, level: str, form: Literal["console", "json"]) -> None:
    """Set up logging for the process."""
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if form == "json"
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    )
    exceptions = [_TRACEBACKS] if form == "json" else []
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            mask_secrets,
            *exceptions,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def mask_secrets(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Replace the value of every field that is named like a secret."""
    for name in _SECRET_NAMES:
        if name in event:
            event[name] = "***"
    return event
