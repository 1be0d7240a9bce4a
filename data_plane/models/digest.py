"""The base model's identity: a digest over its configuration and weight files.

The same text as an adapter's digest (protos/registry/v1/registry.proto): for config.json and each
weight file and its index, in order of name, the line `<sha256>  <name>` and a newline.
"""

import hashlib
from pathlib import Path

from data_plane.errors import ModelRefused


def model_digest(path: Path) -> str:
    """`sha256:<64 hex>` of the files at `path`; reads all of them, so call it off the step loop."""
    names = {"config.json"} | {
        file.name for pattern in ("*.safetensors", "*.safetensors.index.json") for file in path.glob(pattern)
    }
    lines = hashlib.sha256()
    for name in sorted(names):
        try:
            with (path / name).open("rb") as file:
                lines.update(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n".encode())
        except OSError as error:
            raise ModelRefused(f"model: {path / name}: {error.strerror}") from error
    return f"sha256:{lines.hexdigest()}"
