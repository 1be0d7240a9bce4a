"""HubSource: adapters in allowed repositories of a Hugging Face hub, at the commit that was registered.

    hf://<owner>/<repo>@<revision>[/<directory>]#commit=<sha>

The fragment is the control plane's, see its `resolvers/hub_location`.
"""

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import httpx2
from huggingface_hub import HfFileSystem

from data_plane.errors import AdapterRefused, AdapterUnreadable

SCHEME = "hf"
_URI = re.compile(
    r"hf://(?P<repo>[A-Za-z0-9._-]+/[A-Za-z0-9._-]+)@[A-Za-z0-9._-]+(?P<directory>(?:/[^/#?]+)*)"
    r"#commit=(?P<commit>[0-9a-f]{40})"
)


class HubSource:
    """Opens the hf:// URIs of one hub."""

    def __init__(self, repos: Collection[str], *, endpoint: str = "", token: str = "") -> None:
        self._repos = repos  # owner/name or owner/*
        self._endpoint = endpoint or None
        self._token = token or False  # never the token that the machine's user is logged in with

    def open(self, uri: str) -> "HubFiles":
        """The files at the pinned commit; raise AdapterRefused for other repositories and other URIs."""
        found = _URI.fullmatch(uri)
        if found is None or any(part in (".", "..") for part in found["directory"].split("/")):
            raise AdapterRefused(f"{uri!r} does not say which commit is meant: register it again")
        if not any(fnmatchcase(found["repo"], pattern) for pattern in self._repos):
            raise AdapterRefused(f"{found['repo']} is outside of hub_repos")
        filesystem = HfFileSystem(endpoint=self._endpoint, token=self._token, skip_instance_cache=True)
        return HubFiles(filesystem, found["repo"] + found["directory"], found["commit"])


@dataclass(frozen=True, slots=True)
class HubFiles:
    """Implements `AdapterFiles` for a directory of a repository at a commit."""

    filesystem: Any
    path: str  # owner/name and the directory
    commit: str

    def names(self) -> list[str]:
        """See AdapterFiles."""
        with _translated(self._where):
            entries = self.filesystem.ls(self.path, detail=True, revision=self.commit)
            return sorted(entry["name"].rpartition("/")[2] for entry in entries if entry["type"] == "file")

    def read(self, name: str, *, max_bytes: int) -> bytes:
        """See AdapterFiles."""
        what = f"{self._where}: {name}"
        with (
            _translated(what),
            self.filesystem.open(f"{self.path}/{name}", "rb", revision=self.commit) as file,
        ):
            if file.size > max_bytes:
                raise AdapterRefused(f"{what} has {file.size} bytes, at most {max_bytes} can be needed")
            data: bytes = file.read()
            return data

    @property
    def _where(self) -> str:
        return f"{SCHEME}://{self.path}@{self.commit[:8]}"


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except (httpx2.HTTPError, OSError) as error:  # HfHubHTTPError is one of them
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise AdapterUnreadable(f"{what} cannot be read: {reason}") from error
