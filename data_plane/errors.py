"""What can go wrong in a worker, as one tree.

WorkerError
├── InvalidRequest        the caller's field breaks a rule           → INVALID_ARGUMENT
├── ModelRefused          the base model cannot be served            (stops the start)
├── AdapterError
│   ├── AdapterRefused    the files can never be served              → FAILED_PRECONDITION
│   ├── AdapterUnreadable the source could not be read this time     → UNAVAILABLE
│   └── AdapterUnknown    no such revision here, and no source       → NOT_FOUND
├── GrantRefused          no grant, or not for this                  → PERMISSION_DENIED
├── StaleCommand          a newer leader or generation was seen      → FAILED_PRECONDITION
├── Overloaded            a bounded queue or tier is full            → RESOURCE_EXHAUSTED
├── Draining              the worker takes no new requests           → UNAVAILABLE
├── RequestCancelled      by its client or by an eviction            → CANCELLED
└── DeadlineExceeded      the request's time ran out                 → DEADLINE_EXCEEDED

`data_plane.api` turns them into gRPC status; nothing below it knows gRPC.
"""


class WorkerError(Exception):
    """Base of every error that a worker raises on purpose."""


class InvalidRequest(WorkerError):
    """A field of a request or a setting breaks a rule."""

    def __init__(self, field: str, value: object, rule: str) -> None:
        super().__init__(f"{field}: {value!r} {rule}")
        self.field = field
        self.value = value
        self.rule = rule


class ModelRefused(WorkerError):
    """The base model's files or architecture cannot be served; the worker does not start."""


class AdapterError(WorkerError):
    """Base of errors about one adapter; only requests that need it fail."""


class AdapterRefused(AdapterError):
    """The adapter's files can never be served by this worker; the message names what and why."""


class AdapterUnreadable(AdapterError):
    """The source could not be read this time; trying again may help."""


class AdapterUnknown(AdapterError):
    """The worker neither holds the revision nor knows where to read it."""


class GrantRefused(WorkerError):
    """The call carries no valid grant for what it asks."""


class StaleCommand(WorkerError):
    """A command of an older leader or generation than one already carried out."""


class Overloaded(WorkerError):
    """A bounded queue or memory tier is full; try again after `retry_after_s`."""

    def __init__(self, what: str, retry_after_s: float = 1.0) -> None:
        super().__init__(what)
        self.retry_after_s = retry_after_s


class Draining(WorkerError):
    """The worker finishes what it has and takes no new requests."""


class RequestCancelled(WorkerError):
    """The request was cancelled by its client or by an eviction."""


class DeadlineExceeded(WorkerError):
    """The request's deadline passed before it ended."""
