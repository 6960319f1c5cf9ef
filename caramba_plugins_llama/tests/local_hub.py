"""A hub on this machine, for the real library to talk to."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from huggingface_hub.utils.tqdm import disable_progress_bars

__all__ = ["COMMIT", "LATER", "TOKEN", "LocalHub", "served_at"]

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LATER = "89abcdef0123456789abcdef0123456789abcdef"
TOKEN = "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH"


class LocalHub:
    """Repositories in memory, served as the hub serves them; ``fetched`` records the files that were asked for.

    The branch ``main`` of each is at ``COMMIT`` until it is moved; what lay there before stays under its commit.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.fetched: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.down = False
        self.complaint: str | None = None
        self._main: dict[str, str] = {}
        self._before: dict[tuple[str, str], dict[str, bytes]] = {}

    def add(self, name: str, folder: Path) -> dict[str, bytes]:
        files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        self.repositories[name] = files
        return files

    def move(self, name: str, folder: Path, commit: str) -> None:
        """A commit of other files on the branch ``main``."""
        self._before[name, self._main.get(name, COMMIT)] = self.repositories[name]
        self._main[name] = commit
        self.add(name, folder)

    def _at(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commit = self._main.get(name, COMMIT)
        if revision in ("main", commit):
            return commit, self.repositories[name]
        files = self._before.get((name, revision))
        return None if files is None else (revision, files)

    def answer(self, method: str, path: str) -> tuple[int, dict[str, str], bytes]:
        if self.down:
            return 503, {}, b"down"
        if self.complaint is not None:
            return 400, {"X-Error-Message": self.complaint}, b""
        path = path.split("?")[0].strip("/")
        kind, _, rest = path.removeprefix("api/").partition("/")
        if kind == "datasets":
            path = path.replace("datasets/", "models/" if path.startswith("api/") else "", 1)
        if path.startswith("api/models/"):
            name, _, rest = path.removeprefix("api/models/").partition("/revision/")
            name, _, listed = name.partition("/tree/")
            rest = rest or listed
        else:
            name, _, rest = path.partition("/resolve/")
            listed = ""
        if name in self.gated:
            return 403, {"X-Error-Code": "GatedRepo", "X-Error-Message": f"no access with {TOKEN}"}, b""
        if name not in self.repositories:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        revision, _, file = rest.partition("/")
        found = self._at(name, revision)
        if found is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        commit, files = found
        if listed:
            folder = f"{file}/" if file else ""
            inside = [name for name in files if name.startswith(folder)]
            folders = {
                folder + name.removeprefix(folder).partition("/")[0]
                for name in inside
                if name.count("/") > folder.count("/")
            }
            entries = [{"type": "file", "path": name, "oid": name, "size": len(files[name])} for name in inside]
            entries += [{"type": "directory", "path": name, "oid": name} for name in sorted(folders)]
            return 200, {"Content-Type": "application/json"}, json.dumps(entries).encode()
        if path.startswith("api/"):
            siblings = [{"rfilename": file} for file in files]
            content = json.dumps({"id": name, "sha": commit, "siblings": siblings})
            return 200, {"Content-Type": "application/json"}, content.encode()
        if file not in files:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        if method == "GET":
            self.fetched.append(file)
        return 200, {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(files[file]).hexdigest()}"'}, files[file]


@contextmanager
def served_at(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """A hub that the library takes for the real one, with its own cache and ``TOKEN`` to log in with."""
    served = LocalHub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.headers.append(dict(self.headers))
            status, headers, body = served.answer(self.command, self.path)
            if status == 200 and "Range" in self.headers:
                first, last = self.headers["Range"].removeprefix("bytes=").split("-")
                headers["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
                status, body = 206, body[int(first) : int(last or len(body)) + 1]
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    # the library tells of new tries through a handler of the stderr that it found first, which another test has closed
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "handlers", [logging.NullHandler()])
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    disable_progress_bars()
    try:
        yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
