"""Key files: the secrets that a first start leaves for the people and workers of this machine."""

import os
from pathlib import Path


def read(path: Path) -> str | None:
    """Return the secret in a file; None when there is no file."""
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return None


def write(path: Path, secret: str) -> None:
    """Write a secret to a new file that only its owner can read."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Created unreadable for others, not made so afterwards.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w") as file:
        file.write(secret + "\n")
