"""An adapter's digest, written from the definition in registry.proto alone."""

import hashlib
from pathlib import Path


def digest_of(directory: Path) -> str:
    """`sha256sum adapter_config.json adapter_model.safetensors | sha256sum`."""
    lines = "".join(
        f"{hashlib.sha256((directory / name).read_bytes()).hexdigest()}  {name}\n"
        for name in ("adapter_config.json", "adapter_model.safetensors")
    )
    return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"
