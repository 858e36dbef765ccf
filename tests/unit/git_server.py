"""The real front end on loopback with a ``FakeGitService`` behind smart HTTP, and a stock git to talk to it.

Run as a program it serves until its standard input closes: for measuring the memory of a process of its own.
"""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from api.app import create_app
from api.server import listen
from api.server import serve as front_end
from api.smart_http import SmartHttp
from node.ports.service import Service
from tests.unit.fake_git_service import FakeGitService, config_for

CLIENT_ENVIRONMENT = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@example.org",
    "GIT_AUTHOR_DATE": "2026-01-01T00:00:00Z",
    "GIT_COMMITTER_DATE": "2026-01-01T00:00:00Z",
    "LC_ALL": "C",
}


@dataclass
class Ran:
    """What git said."""

    code: int
    out: str
    err: str


@dataclass
class Server:
    """One node for a test."""

    service: FakeGitService
    port: int
    folder: Path
    requests: list[dict[str, Any]] = field(default_factory=list)
    """Every request's method, path and headers."""

    def url(self, name: str = "alice/project") -> str:
        return f"http://127.0.0.1:{self.port}/{name}.git"

    def git(self, *arguments: str, cwd: Path | None = None, ok: bool = True, **env: str) -> Ran:
        done = subprocess.run(
            ["git", "-c", "init.defaultBranch=main", "-c", "protocol.version=2", "-c", "core.fsync=none", *arguments],
            cwd=cwd or self.folder,
            env={**os.environ, **CLIENT_ENVIRONMENT, **env},
            capture_output=True,
            check=False,
            timeout=90,
        )
        ran = Ran(done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace"))
        assert not ok or ran.code == 0, ran
        return ran

    def work(self, name: str = "work", commits: int = 2) -> Path:
        """A working copy with some history and an annotated tag, its origin here."""
        path = self.folder / name
        self.git("init", "--quiet", str(path))
        for number in range(commits):
            self.commit(path, f"commit {number}", date=f"2026-01-{number + 1:02}T00:00:00Z")
        self.git("tag", "-a", "v1", "-m", "v1", cwd=path)
        self.git("remote", "add", "origin", self.url(), cwd=path)
        return path

    def commit(self, path: Path, text: str, *, date: str = "2026-02-01T00:00:00Z") -> str:
        (path / "file").write_text(text * 50)
        self.git("add", ".", cwd=path)
        self.git("commit", "--quiet", "-m", text, cwd=path, GIT_AUTHOR_DATE=date, GIT_COMMITTER_DATE=date)
        return self.git("rev-parse", "HEAD", cwd=path).out.strip()

    def refs(self, name: str = "alice/project") -> dict[str, str]:
        """What is really in the repository."""
        owner, _, repository = name.partition("/")
        path = self.service.root / owner / f"{repository}.git"
        lines = self.git("for-each-ref", "--format=%(refname) %(objectname)", cwd=path).out.splitlines()
        return dict(line.split(" ") for line in lines)


@contextmanager
def serve(folder: Path, **settings: Any) -> Iterator[Server]:
    """The whole front end on a free port, in a thread with its own loop."""
    service = FakeGitService(folder / "repositories")
    config = config_for(folder, **settings)
    node = cast(Service, service)
    app = create_app(node, config, smart_http=SmartHttp(node, config))
    requests: list[dict[str, Any]] = []

    async def noting(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            headers = {name.decode(): value.decode() for name, value in scope["headers"]}
            requests.append({"method": scope["method"], "path": scope["path"], "headers": headers})
        await app(scope, receive, send)

    listening = listen("127.0.0.1", 0)
    loop, stop, started = asyncio.new_event_loop(), asyncio.Event(), threading.Event()
    answering = front_end(noting, config, sockets=[listening], stop=stop, on_started=started.set)

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(answering)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert started.wait(20)
        yield Server(service, listening.getsockname()[1], folder, requests)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(timeout=20)


if __name__ == "__main__":
    with serve(Path(sys.argv[1])) as running:
        running.service.create("alice/project")
        sys.stdout.write(f"{running.port}\n")
        sys.stdout.flush()
        sys.stdin.read()
