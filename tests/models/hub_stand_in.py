"""A small local stand-in for the Hugging Face hub: what huggingface_hub asks of it, over HTTP, nothing more.

Every file goes the "regular" way (in the commit itself). The real hub takes large files through another service.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LICENSES = {"mit", "cc-by-4.0", "apache-2.0"}


@dataclass
class Repo:
    """One repository: commits by hash, and branches and tags that name them."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Add files on top of a branch; returns the commit's hash."""
        tree = {**self.commits.get(self.refs.get(branch, ""), {}), **files}
        parts = [
            branch,
            str(len(self.commits)),
            *(f"{k}:{hashlib.sha1(v).hexdigest()}" for k, v in tree.items()),
        ]
        sha = hashlib.sha1("\n".join(parts).encode()).hexdigest()
        self.commits[sha] = tree
        self.refs[branch] = sha
        return sha


class Hub:
    """The stand-in.

    Attributes
    ----------
    url
        Its address.
    repos
        What it holds, by name.
    asked
        Method and path of every request.
    fail
        A path that contains this is answered with 500.
    gated
        Repositories whose owners ask one to accept terms.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.asked: list[tuple[str, str]] = []
        self.fail, self.gated, self.url = "", set(), ""  # type: str, set[str], str
        self.allowed = "hf_good"  # the one token that may write


@contextmanager
def serve() -> Iterator[Hub]:
    """Run a stand-in on this machine."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append((self.command, path))
        words = path.strip("/").split("/")
        if self.hub.fail and self.hub.fail in path:
            self._send(500, {"error": "the hub is down"})
        elif path == "/api/validate-yaml":
            self._validate(json.loads(body))
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif words[:2] == ["api", "models"] and len(words) >= 4:
            self._api("/".join(words[2:4]), words[4:], body)
        elif len(words) >= 5 and words[2] == "resolve":
            self._file("/".join(words[:2]), words[3], "/".join(words[4:]))
        else:
            self._send(404, {"error": "not found"})

    def _writer(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.allowed}"

    def _validate(self, asked: Any) -> None:
        front = asked["content"].split("---")[1]
        stated = [
            line.split(":")[1].strip().strip('"')
            for line in front.splitlines()
            if line.startswith("license:")
        ]
        wrong = [
            {"message": f'"license" must be one of {sorted(LICENSES)}'}
            for one in stated
            if one not in LICENSES
        ]
        self._send(400 if wrong else 200, {"errors": wrong, "warnings": []})

    def _create(self, asked: Any) -> None:
        if not self._writer():
            self._send(401, {"error": "Invalid username or password."})
            return
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.hub.repos:
            self._send(
                409,
                {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"},
            )
            return
        private = asked.get("visibility") == "private" or asked.get("private") is True
        self.hub.repos[name] = Repo(private=private)
        self.hub.repos[name].commit({})
        self._send(200, {"url": f"{self.hub.url}/{name}", "name": name})

    def _find(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and not self._writer()):
            self._send(
                404 if self._writer() else 401,
                {"error": "Repository not found"},
                {"X-Error-Code": "RepoNotFound"},
            )
            return None
        if name in self.hub.gated:
            self._send(403, {"error": "restricted"}, {"X-Error-Code": "GatedRepo"})
            return None
        sha = repo.refs.get(revision, revision)
        if sha not in repo.commits:
            self._send(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
            return None
        return sha, repo.commits[sha]

    def _api(self, name: str, rest: list[str], body: bytes) -> None:
        what, revision = (rest[0] if rest else "revision"), "/".join(rest[1:]) or "main"
        if self.command == "POST" and what == "branch":
            repo = self.hub.repos[name]
            known = revision in repo.refs
            repo.refs.setdefault(revision, repo.refs["main"])
            self._send(409 if known else 200, {})
            return
        if what == "tree":  # a path inside may follow; the stand-in's checkpoints are flat
            revision = rest[1]
        found = self._find(name, revision)
        if found is None:
            return
        sha, tree = found
        if self.command == "POST" and not self._writer():
            self._send(403, {"error": "Forbidden: pass a token that can write"})
        elif what == "preupload":
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            self._send(200, {"files": files})
        elif what == "commit":
            self._commit(name, revision, body)
        elif what == "tree":
            rows = [
                {"type": "file", "path": k, "size": len(v), "oid": _oid(v)} for k, v in tree.items()
            ]
            self._send(200, rows)
        else:
            siblings = [{"rfilename": k} for k in tree]
            private = self.hub.repos[name].private
            self._send(
                200,
                {
                    "id": name,
                    "modelId": name,
                    "sha": sha,
                    "private": private,
                    "siblings": siblings,
                    "tags": [],
                },
            )

    def _commit(self, name: str, branch: str, body: bytes) -> None:
        lines = [json.loads(line) for line in body.splitlines() if line]
        files = {
            x["value"]["path"]: base64.b64decode(x["value"]["content"])
            for x in lines
            if x["key"] == "file"
        }
        sha = self.hub.repos[name].commit(files, branch)
        self._send(
            200,
            {"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{name}/commit/{sha}"},
        )

    def _file(self, name: str, revision: str, path: str) -> None:
        found = self._find(name, revision)
        if found is None:
            return
        sha, tree = found
        if path not in tree:
            self._send(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
            return
        self._send(200, tree[path], {"ETag": f'"{_oid(tree[path])}"', "X-Repo-Commit": sha})

    def _send(self, status: int, answer: Any, headers: dict[str, str] | None = None) -> None:
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        kind = "application/octet-stream" if isinstance(answer, bytes) else "application/json"
        self.send_response(status)
        for key, value in {
            "Content-Type": kind,
            "Content-Length": str(len(content)),
            **(headers or {}),
        }.items():
            self.send_header(key, value)
        if not isinstance(answer, bytes) and "error" in answer:
            self.send_header("X-Error-Message", answer["error"])
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
