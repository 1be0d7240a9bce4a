"""HubLocation: the directory of an adapter in a Hugging Face repository, as a URI.

    hf://<owner>/<repo>[@<revision>][/<directory>]                  what people write
    hf://<owner>/<repo>@<revision>[/<directory>]#commit=<sha>        what the registry keeps

The fragment pins the commit that was read, so that a worker reads the same bytes. Pure text. A worker
parses it on its own, since neither plane imports the other; tests/contracts holds them together.
"""

import re
from dataclasses import dataclass

from control_plane.errors import Refused

SCHEME = "hf://"
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
REPOSITORIES = re.compile(rf"{_NAME}/(?:{_NAME}|\*)")
REPOSITORIES_RULE = "must be <owner>/<name> or <owner>/*"
# A revision is a branch, tag or commit; one with slashes cannot be told from a directory.
_URI = re.compile(
    rf"hf://(?P<repo>{_NAME}/{_NAME})(?:@(?P<revision>[A-Za-z0-9][A-Za-z0-9._-]*))?(?P<directory>(?:/[^/#?]+)*)/?"
)


@dataclass(frozen=True, slots=True)
class HubLocation:
    """Where in which repository the files of one adapter are."""

    repo: str  # owner/name
    revision: str  # branch, tag or commit
    directory: str  # without slashes at its ends; empty: the repository's top

    def __str__(self) -> str:
        return "/".join(filter(None, (f"{SCHEME}{self.repo}@{self.revision}", self.directory)))

    def pinned(self, commit: str) -> str:
        """Return the URI of exactly what this commit has."""
        return f"{self}#commit={commit}"

    def path(self, name: str) -> str:
        """Return a file's path in the repository."""
        return f"{self.directory}/{name}" if self.directory else name


def parse_location(uri: str) -> HubLocation:
    """Read an hf:// URI; without a revision it is `main`.

    Its pin, if any, is left out: resolving again means what is there now.
    """
    found = _URI.fullmatch(uri.partition("#")[0])
    if found is None or any(part in (".", "..") for part in found["directory"].split("/")):
        raise Refused(f"{uri!r} must be hf://<owner>/<repo>[@<revision>][/<directory>]")
    return HubLocation(found["repo"], found["revision"] or "main", found["directory"].strip("/"))
