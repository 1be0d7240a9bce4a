"""Where the control plane is and which key to show it.

Both come from flags, else from the environment, else from the file that `loraplane up` wrote.
"""

import json
from dataclasses import dataclass
from pathlib import Path

DEFAULT_ENDPOINT = "127.0.0.1:8470"
DEFAULT_STATE_DIR = Path(".loraplane")
CLIENT_FILE = "client.json"


@dataclass(frozen=True, slots=True)
class Connection:
    """An endpoint and the key to use there."""

    endpoint: str
    key: str

    def __repr__(self) -> str:
        return f"Connection(endpoint={self.endpoint!r}, key='***')"

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Metadata of every call."""
        return (("authorization", f"Bearer {self.key}"),) if self.key else ()


def connect(endpoint: str | None, key: str | None, state_dir: Path) -> Connection:
    """Fill what is not given from the file that `up` wrote under `state_dir`."""
    written = _read(state_dir / CLIENT_FILE)
    if key is None and "key_file" in written:
        key = Path(written["key_file"]).read_text().strip()
    return Connection(endpoint or written.get("endpoint", DEFAULT_ENDPOINT), key or "")


def write_client_file(state_dir: Path, endpoint: str, key_file: Path) -> None:
    """Remember an endpoint for the commands that follow."""
    content = {"endpoint": endpoint, "key_file": str(key_file)}
    (state_dir / CLIENT_FILE).write_text(json.dumps(content, indent=2) + "\n")


def _read(path: Path) -> dict[str, str]:
    try:
        content: dict[str, str] = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    return content
