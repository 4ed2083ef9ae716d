"""A model hub on 127.0.0.1: as much of the hub's protocol as `datasets` and `huggingface_hub` need to read from it.

A folder is served as it stands: `models/owner/name/...` and `datasets/owner/name/...`.  A repository's only commit is
the digest of its files, so that it changes when they do.  Clients read `HF_ENDPOINT` when they are imported, so run
them in a process of their own, with `Hub.environment`.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


class Missing(Exception):
    """What is asked for is not there; the argument is the hub's own code of it."""


class Hub:
    """A running hub.

    Args:
        root: the folder that it serves.

    Attributes:
        asked: every request so far, as `GET /path`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: list[str] = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def environment(self, home: Path) -> dict[str, str]:
        """Return the environment of a client whose caches live below `home`."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
        return {**kept, "HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}

    def commit(self, folder: Path) -> str:
        """Return the only commit of a repository's folder."""
        content = b"".join(p.relative_to(folder).as_posix().encode() + p.read_bytes() for p in _files(folder))
        return hashlib.sha1(content).hexdigest()

    @contextmanager
    def running(self) -> Iterator[Hub]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, *_: Any) -> None:
        """Stay silent."""

    def _answer(self) -> None:
        self.hub.asked.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            status, headers, content = 200, *self._found(unquote(urlsplit(self.path).path).strip("/"), body)
        except Missing as missing:
            status, headers, content = 404, {"X-Error-Code": str(missing)}, b""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _found(self, path: str, body: bytes) -> tuple[Mapping[str, str], bytes]:
        parts = path.split("/")
        if parts[0] == "api" and len(parts) >= 4:
            folder = self._folder(parts[1], *parts[2:4])
            verb, _, rest = "/".join(parts[4:]).partition("/")
            answer = self._described(folder, "/".join(parts[2:4]), verb or "revision", rest, body)
            return {"Content-Type": "application/json"}, json.dumps(answer).encode()
        kind = parts.pop(0) if parts[0] == "datasets" else "models"
        if len(parts) < 5 or parts[2] != "resolve":
            raise Missing("RepoNotFound")
        folder = self._folder(kind, *parts[:2])
        commit = self._commit(folder, parts[3])
        file = folder.joinpath(*parts[4:])
        if not file.is_file():
            raise Missing("EntryNotFound")
        content = file.read_bytes()
        return {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": commit}, content

    def _described(self, folder: Path, name: str, verb: str, rest: str, body: bytes) -> Any:
        revision, _, below = rest.partition("/")
        commit = self._commit(folder, revision or "main")
        match verb:
            case "revision":
                files = [{"rfilename": p.relative_to(folder).as_posix()} for p in _files(folder)]
                shared = {"id": name, "sha": commit, "private": False, "gated": False, "disabled": False, "tags": []}
                return {**shared, "downloads": 0, "likes": 0, "siblings": files}
            case "tree":
                if not (folder / below).is_dir():
                    raise Missing("EntryNotFound")
                everything = "recursive=true" in self.path.lower()
                found = (folder / below).rglob("*") if everything else (folder / below).iterdir()
                return [_entry(folder, p) for p in sorted(found)]
            case "paths-info":
                asked = json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode())["paths"]
                return [_entry(folder, folder / n) for n in asked if (folder / n).exists()]
        raise Missing("EntryNotFound")

    def _folder(self, kind: str, *name: str) -> Path:
        folder = self.hub.root.joinpath(kind, *name)
        if len(name) != 2 or not folder.is_dir():
            raise Missing("RepoNotFound")
        return folder

    def _commit(self, folder: Path, revision: str) -> str:
        commit = self.hub.commit(folder)
        if revision not in ("main", commit):
            raise Missing("RevisionNotFound")
        return commit


def _files(folder: Path) -> list[Path]:
    return [p for p in sorted(folder.rglob("*")) if p.is_file()]


def _entry(folder: Path, path: Path) -> dict[str, Any]:
    content = path.read_bytes() if path.is_file() else str(path).encode()
    kind, size = ("file", len(content)) if path.is_file() else ("directory", 0)
    oid = hashlib.sha1(content).hexdigest()
    return {"type": kind, "path": path.relative_to(folder).as_posix(), "size": size, "oid": oid}
