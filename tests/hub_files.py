"""Files of the Hub of tests/hub.py: its commits, and how its protocol describes them."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

LARGE = (".safetensors", ".bin", ".parquet", ".gguf", ".model")  # stored in LFS


@dataclass
class Repository:
    """Commits by hash, each with its files; branches and tags point to them."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Mapping[str, bytes], *refs: str) -> str:
        digest = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.commits[digest] = dict(files)
        self.refs |= dict.fromkeys(refs or ("main",), digest)
        return digest

    def at(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.refs.get(revision)


def etag(path: str, content: bytes) -> str:
    """The name of a file's blob in a cache."""
    return hashlib.sha256(content).hexdigest() if path.endswith(LARGE) else git_hash(content)


def git_hash(content: bytes) -> str:
    """Git's hash of a blob."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def entries(files: Mapping[str, bytes], place: str, recursive: bool) -> list[dict[str, Any]]:
    """Entries of a folder; Any: JSON."""
    prefix = f"{place.strip('/')}/" if place.strip("/") else ""
    out: dict[str, dict[str, Any]] = {}
    for path, content in sorted(files.items()):
        if not path.startswith(prefix):
            continue
        parts = path[len(prefix) :].split("/")
        for depth in range(1, len(parts)):
            folder = prefix + "/".join(parts[:depth])
            if recursive or depth == 1:
                out.setdefault(
                    folder, {"type": "directory", "path": folder, "oid": git_hash(folder.encode()), "size": 0}
                )
        if recursive or len(parts) == 1:
            entry: dict[str, Any] = {
                "type": "file",
                "path": path,
                "size": len(content),
                "oid": git_hash(content),
            }
            if path.endswith(LARGE):
                digest = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
            out[path] = entry
    return list(out.values())


def requested_paths(body: bytes, content_type: str) -> set[str]:
    if "json" in content_type:
        paths = json.loads(body)["paths"]
        return {paths} if isinstance(paths, str) else set(paths)
    return set(parse_qs(body.decode()).get("paths", []))
