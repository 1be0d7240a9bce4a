"""HubServer: as much of the Hugging Face hub's HTTP API as reading model repositories needs.

Paths as huggingface_hub 2.4 asks for them: `/api/models/<repo>/revision/<revision>`,
`/api/models/<repo>/tree/<revision>/<path>` and `/<repo>/resolve/<revision>/<path>`.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

_REVISION = re.compile(r"/api/models/([^/]+/[^/]+)/revision/([^/]+)")
_TREE = re.compile(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)(?:/(.*))?")
_RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_RANGE = re.compile(r"bytes=(\d+)-(\d+)")

POLL_S = 0.01  # how soon a server notices that it should end


@dataclass
class HubServer:
    """Repositories by name, their commits by id, and what was asked."""

    url: str = ""
    commits: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)  # repo → commit → files
    heads: dict[str, str] = field(default_factory=dict)  # repo → commit of main
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)  # path, headers in lower case
    status: int = 0  # answered to everything, unless 0

    def commit(self, repo: str, directory: Path, prefix: str = "") -> str:
        """Add a commit to `main` with the files of a directory; return its id."""
        files = {prefix + file.name: file.read_bytes() for file in directory.iterdir()}
        commits = self.commits.setdefault(repo, {})
        commit = hashlib.sha1(f"{repo}{len(commits)}".encode()).hexdigest()
        commits[commit] = files
        self.heads[repo] = commit
        return commit

    def answer(self, path: str, byte_range: str | None) -> tuple[int, bytes]:
        """Return status and body."""
        if self.status:
            return self.status, b"{}"
        if match := _REVISION.fullmatch(path):
            return self._info(match[1], match[2])
        if match := _TREE.fullmatch(path):
            return self._tree(match[1], match[2], match[3] or "")
        if match := _RESOLVE.fullmatch(path):
            return self._file(match[1], match[2], match[3], byte_range)
        return 404, b"EntryNotFound"

    def _files(self, repo: str, revision: str) -> dict[str, bytes] | None:
        commit = self.heads.get(repo) if revision == "main" else revision
        return self.commits.get(repo, {}).get(commit or "")

    def _info(self, repo: str, revision: str) -> tuple[int, bytes]:
        files = self._files(repo, revision)
        if files is None:
            return 404, b"RevisionNotFound" if repo in self.commits else b"RepoNotFound"
        commit = self.heads[repo] if revision == "main" else revision
        siblings = [{"rfilename": name} for name in files]
        return 200, json.dumps({"id": repo, "sha": commit, "siblings": siblings, "tags": []}).encode()

    def _tree(self, repo: str, revision: str, directory: str) -> tuple[int, bytes]:
        entries = [
            {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for name, content in (self._files(repo, revision) or {}).items()
            if name.rpartition("/")[0] == directory
        ]
        return (200, json.dumps(entries).encode()) if entries else (404, b"EntryNotFound")

    def _file(self, repo: str, revision: str, name: str, byte_range: str | None) -> tuple[int, bytes]:
        content = (self._files(repo, revision) or {}).get(name)
        if content is None:
            return 404, b"EntryNotFound"
        if byte_range and (match := _RANGE.fullmatch(byte_range)):
            return 206, content[int(match[1]) : int(match[2]) + 1]
        return 200, content


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """Run an empty hub until the block ends."""
    hub = HubServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.seen.append((path, {name.lower(): value for name, value in self.headers.items()}))
            status, body = hub.answer(path, self.headers.get("Range"))
            self.send_response_only(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", "application/json")
            if status == 404:
                self.send_header("X-Error-Code", body.decode())
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        hub.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(POLL_S,), daemon=True).start()
        yield hub
        server.shutdown()
