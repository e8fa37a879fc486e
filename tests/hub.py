"""A Hugging Face Hub on the loopback that speaks the protocol of the real clients, with faults to inject.

Large files (LFS) are redirected to another host name, as the Hub redirects to its CDN. Requests are counted by method
and path; `bodies` counts the bytes sent of each file, by "NAMESPACE/NAME/FILE".
"""

import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub_files import LARGE, Repository, entries, git_hash, requested_paths

API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?$")
FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)$")


@dataclass
class Fault:
    """A fault of the next `times` requests whose path contains `path`."""

    path: str
    status: int = 0  # 0: the body ends after `cut` bytes
    code: str = ""  # X-Error-Code
    message: str = ""
    cut: int = 0
    times: int = 10**9
    method: str = ""  # "": any


class Hub:
    """The server; `url` is the value for HF_ENDPOINT."""

    def __init__(self) -> None:
        self.models: dict[str, Repository] = {}
        self.datasets: dict[str, Repository] = {}
        self.faults: list[Fault] = []
        self.requests: Counter[str] = Counter()  # "GET /path"
        self.bodies: Counter[str] = Counter()  # bytes
        self.pause_s = (
            0.0  # before the body of a large file, so that several clients request it at the same time
        )
        self.lock = threading.Lock()
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.cdn = f"http://localhost:{self.server.server_port}/cdn"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def model(self, name: str, files: Mapping[str, bytes] | Path, *refs: str) -> str:
        """Add a commit; returns its hash."""
        return self.models.setdefault(name, Repository()).commit(_files(files), *refs)

    def dataset(self, name: str, files: Mapping[str, bytes] | Path, *refs: str) -> str:
        return self.datasets.setdefault(name, Repository()).commit(_files(files), *refs)

    def fetched(self, name: str) -> float:
        """How many times the body of a file ("NAMESPACE/NAME/FILE") was sent."""
        repository, _, path = name.rpartition("/")
        commits = (self.models.get(repository) or self.datasets[repository]).commits.values()
        return self.bodies[name] / max(len(files[path]) for files in commits if path in files)

    def weights_sent(self, name: str) -> list[float]:
        """How many times the body of each safetensors file of a model's main branch was sent."""
        repository = self.models[name]
        files = repository.commits[repository.refs["main"]]
        return [self.fetched(f"{name}/{file}") for file in files if file.endswith(".safetensors")]

    def forget(self) -> None:
        self.requests.clear()
        self.bodies.clear()
        self.faults.clear()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def _files(files: Mapping[str, bytes] | Path) -> dict[str, bytes]:
    if isinstance(files, Path):
        return {str(p.relative_to(files)): p.read_bytes() for p in sorted(files.rglob("*")) if p.is_file()}
    return dict(files)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        path, hub = unquote(urlsplit(self.path).path), self.hub
        with hub.lock:
            hub.requests[f"{self.command} {path}"] += 1
            fault = next(
                (
                    f
                    for f in hub.faults
                    if f.path in path and f.times > 0 and f.method in ("", self.command) and f.status
                ),
                None,
            )
            if fault:
                fault.times -= 1
        if fault:
            self._error(fault.status, fault.code, fault.message)
        elif match := API.match(path):
            self._api(*match.groups(), body=body)
        elif match := FILE.match(path):
            self._file(*match.groups())
        elif path.startswith("/cdn/"):
            self._cdn(path.removeprefix("/cdn/"))
        else:
            self._error(404, "", "no such route")

    def _repository(self, kind: str, name: str) -> Repository | None:
        repository = (self.hub.datasets if kind.startswith("datasets") else self.hub.models).get(name)
        if repository is None:  # without a token, the Hub does not say whether a repository exists
            self._error(401, "RepoNotFound", "Repository not found")
        return repository

    def _api(
        self, kind: str, name: str, route: str | None, revision: str | None, place: str | None, body: bytes
    ) -> None:
        repository = self._repository(kind, name)
        if repository is None:
            return
        commit = repository.at(revision or "main")
        if commit is None:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        files = repository.commits[commit]
        if route == "tree":
            self._json(entries(files, place or "", "recursive" in parse_qs(urlsplit(self.path).query)))
        elif route == "paths-info":
            listed = entries(files, "", recursive=True)
            requested = requested_paths(body, self.headers.get("Content-Type", ""))
            self._json([entry for entry in listed if entry["path"] in requested])
        else:
            self._json(
                {
                    "_id": "0" * 24, "id": name, "modelId": name, "sha": commit, "private": False, "gated": False,
                    "disabled": False, "tags": [], "downloads": 0, "likes": 0,
                    "siblings": [{"rfilename": path} for path in sorted(files)],
                }
            )  # fmt: skip

    def _file(self, dataset: str | None, name: str, revision: str, path: str) -> None:
        repository = self._repository(dataset or "models", name)
        if repository is None:
            return
        commit = repository.at(revision)
        if commit is None:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        content = repository.commits[commit].get(path)
        if content is None:
            self._error(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
            return
        headers = {"X-Repo-Commit": commit}
        if path.endswith(LARGE):
            digest = hashlib.sha256(content).hexdigest()
            headers |= {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{digest}"'}
            self._send(302, b"", {**headers, "Location": f"{self.hub.cdn}/{digest}"})
        else:
            self._content(f"{name}/{path}", content, {**headers, "ETag": f'"{git_hash(content)}"'})

    def _cdn(self, digest: str) -> None:
        time.sleep(self.hub.pause_s)
        for name, repository in (*self.hub.models.items(), *self.hub.datasets.items()):
            for files in repository.commits.values():
                for path, content in files.items():
                    if hashlib.sha256(content).hexdigest() == digest:
                        self._content(f"{name}/{path}", content, {"ETag": f'"{digest}"'})
                        return
        self._error(404, "", "no such object")

    def _content(self, path: str, content: bytes, headers: dict[str, str]) -> None:
        status = 200
        if span := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(span[1]), int(span[2] or len(content) - 1)
            if first >= len(content):
                self._error(416, "", "range")
                return
            status, headers = (
                206,
                {**headers, "Content-Range": f"bytes {first}-{min(last, len(content) - 1)}/{len(content)}"},
            )
            content = content[first : last + 1]
        with self.hub.lock:
            fault = next(
                (f for f in self.hub.faults if not f.status and f.path in path and f.times > 0), None
            )
            broken = fault is not None and self.command == "GET"
            if fault and broken:
                fault.times -= 1
        if fault and broken:
            self._send(status, content[: fault.cut], headers, length=len(content))
            self.close_connection = True
            content = content[: fault.cut]
        else:
            self._send(status, content, headers)
        if self.command == "GET":
            with self.hub.lock:
                self.hub.bodies[path] += len(content)

    def _json(self, value: Any) -> None:  # Any: whatever json.dumps takes
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, code: str, message: str, extra: Mapping[str, str] | None = None) -> None:
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(extra or {})}
        self._send(status, json.dumps({"error": message}).encode(), headers)

    def _send(
        self, status: int, body: bytes, headers: Mapping[str, str], *, length: int | None = None
    ) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
