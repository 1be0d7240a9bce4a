"""What can go wrong in the control plane, as one tree.

ControlError
├── InvalidArgument   a field of the call breaks a rule             → INVALID_ARGUMENT  (BadRequest)
├── NotFound          no such adapter, revision, worker or tenant   → NOT_FOUND         (ResourceInfo)
├── NameTaken         the name exists with other content            → ALREADY_EXISTS    (ResourceInfo)
├── StaleRevision     `expected_revision` is not the current one    → ABORTED
├── Disabled          an operator has to allow it first             → FAILED_PRECONDITION
├── Refused           the adapter can never be served here          → FAILED_PRECONDITION
├── Draining          the worker's drain cannot be taken back       → FAILED_PRECONDITION (ResourceInfo)
├── Unauthenticated   no key, or an unknown one                     → UNAUTHENTICATED
├── Forbidden         the key's role or tenant does not allow it    → PERMISSION_DENIED
├── QuotaExceeded     a limit of the tenant is reached              → RESOURCE_EXHAUSTED (QuotaFailure)
├── ClientBehind      its client reads too slowly                   → RESOURCE_EXHAUSTED
├── SourceUnavailable a source could not be read this time          → UNAVAILABLE       (RetryInfo)
├── NoWorker          no worker can take the request now            → UNAVAILABLE       (RetryInfo)
└── StoreUnavailable  Redis cannot be reached                       → UNAVAILABLE       (RetryInfo)

`control_plane.api.status` turns them into gRPC status by table; nothing below knows gRPC.
"""


class ControlError(Exception):
    """Base of every error that the control plane raises on purpose."""


class InvalidArgument(ControlError):
    """A field of a call breaks a rule."""

    def __init__(self, field: str, value: object, rule: str) -> None:
        super().__init__(f"{field}: {value!r} {rule}")
        self.field = field
        self.rule = rule


class ResourceError(ControlError):
    """An error about one named resource."""

    def __init__(self, kind: str, name: str, description: str) -> None:
        super().__init__(f"{kind} {name!r} {description}")
        self.kind = kind
        self.name = name


class NotFound(ResourceError):
    """The resource does not exist, or the caller may not know that it does."""

    def __init__(self, kind: str, name: str, description: str = "not found") -> None:
        super().__init__(kind, name, description)


class NameTaken(ResourceError):
    """The name exists with other content."""


class StaleRevision(ResourceError):
    """The caller expected another current revision; read again and decide."""


class Draining(ResourceError):
    """The worker finishes and leaves; only its successor takes requests."""


class Refused(ControlError):
    """The adapter's files can never be served here; the message names what and why."""


class Disabled(ControlError):
    """What is asked for is off unless a setting allows it."""

    def __init__(self, what: str, setting: str) -> None:
        super().__init__(f"{what} is off: an operator allows it by the setting {setting}")
        self.setting = setting


class Unauthenticated(ControlError):
    """The call carries no API key, or an unknown one."""


class Forbidden(ControlError):
    """The key's role or tenant does not allow the call."""


class QuotaExceeded(ControlError):
    """A limit of the tenant is reached."""

    def __init__(self, tenant: str, limit: str, maximum: int, retry_after_s: float | None) -> None:
        when = "" if retry_after_s is None else f"; retry in {retry_after_s:.1f} s"
        super().__init__(f"tenant {tenant!r} is over its limit {limit} = {maximum}{when}")
        self.tenant = tenant
        self.limit = limit
        self.maximum = maximum
        self.retry_after_s = retry_after_s


class ClientBehind(ControlError):
    """More waits for the client than is kept for one that does not read."""


class Transient(ControlError):
    """Trying again after `retry_after_s` may help."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class SourceUnavailable(Transient):
    """A source could not be read this time."""


class NoWorker(Transient):
    """No worker can take the request now."""


class StoreUnavailable(Transient):
    """Redis cannot be reached."""
