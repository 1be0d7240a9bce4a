"""What the Triton path refuses, as one exception."""


class LaunchRefused(ValueError):
    """A tensor or setting breaks a rule of the kernels; nothing was launched."""

    def __init__(self, field: str, value: object, rule: str) -> None:
        super().__init__(f"{field}: {value!r} {rule}")
        self.field = field
        self.value = value
        self.rule = rule
