"""Wall time of one small push through a cluster, against ``git http-backend`` behind a web server on the same machine.

Both get the same commits, one small file each, from working copies of their own; runs are interleaved so that whatever else
the machine does hits both. Printed: both medians and their ratio (issue after issue it must fall). The web server is
lighttpd with mod_cgi if it is installed, else a small CGI server of the standard library.

    make bench                          a cluster of its own, broker as found
    .venv/bin/python bench/push.py --broker direct --runs 50 --json
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO

from node.command.selfcheck import git_environment
from node.command.sockets import connects, free_ports, is_free, wait_for

PUSH_TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class Side:
    """One server and the working copy that pushes to it."""

    name: str
    work: Path
    url: str


def main() -> int:
    options = _options()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gitquorum-bench-")))
        cluster_url, broker = stack.enter_context(cluster(folder, options.broker))
        backend_url, server = stack.enter_context(http_backend(folder))
        sides = [
            prepare(folder, "cluster", cluster_url, options.runs + 1),
            prepare(folder, "http-backend", backend_url, options.runs + 1),
        ]
        times = measure(folder, sides, options.runs)
    medians = {name: statistics.median(values) for name, values in times.items()}
    result = {
        "runs": options.runs,
        "broker": broker,
        "web_server": server,
        "cluster_ms": round(medians["cluster"] * 1000, 1),
        "http_backend_ms": round(medians["http-backend"] * 1000, 1),
        "ratio": round(medians["cluster"] / medians["http-backend"], 3),
    }
    sys.stdout.write(json.dumps(result, indent=2) + "\n" if options.json else _sentence(result))
    return 0


def measure(folder: Path, sides: list[Side], runs: int) -> dict[str, list[float]]:
    """Seconds per push; the first push to each side is not counted."""
    times: dict[str, list[float]] = {side.name: [] for side in sides}
    for run in range(1, runs + 2):
        # Who goes first alternates: the second of a pair finds the machine a little warmer.
        for side in sides if run % 2 else reversed(sides):
            began = time.perf_counter()
            git(folder, side.work, "push", "--quiet", "origin", f"refs/bench/{run}:refs/heads/main")
            if run > 1:
                times[side.name].append(time.perf_counter() - began)
    return times


def prepare(folder: Path, name: str, url: str, commits: int) -> Side:
    """A working copy whose ``refs/bench/1…`` are commits, each the child of the one before."""
    work = folder / f"work-{name}"
    git(folder, folder, "init", "--quiet", str(work))
    for number in range(1, commits + 1):
        (work / "file.txt").write_text(f"line {number}\n")
        git(folder, work, "add", "file.txt")
        git(folder, work, "commit", "--quiet", "--message", f"commit {number}")
        git(folder, work, "update-ref", f"refs/bench/{number}", "HEAD")
    git(folder, work, "remote", "add", "origin", url)
    return Side(name, work, url)


@contextmanager
def cluster(folder: Path, broker: str) -> Iterator[tuple[str, str]]:
    """(URL of an empty repository on node 1, the broker's title) of a fresh cluster of three."""
    base = next(port for port in range(23_001, 32_000, 10) if all(is_free(port + number) for number in range(3)))
    command = [sys.executable, "-P", "-m", "node", "--directory", str(folder / "state")]

    def run(*arguments: str) -> str:
        return subprocess.run([*command, *arguments], check=True, stdout=subprocess.PIPE, text=True, timeout=180).stdout

    try:
        up = json.loads(run("up", "--json", "--base-port", str(base), "--broker", broker))
        run("repo", "create", "bench/push")
        yield f"{up['nodes'][0]['url']}/bench/push.git", up["broker"]["title"]
    finally:
        run("down", "--purge")


@contextmanager
def http_backend(folder: Path) -> Iterator[tuple[str, str]]:
    """(URL of an empty repository, name of the web server)."""
    root = folder / "backend"
    repository = root / "bench" / "push.git"
    git(folder, folder, "init", "--quiet", "--bare", str(repository))
    git(folder, repository, "config", "http.receivepack", "true")
    lighttpd = shutil.which("lighttpd") or shutil.which("lighttpd", path="/usr/sbin:/usr/local/sbin")
    port = free_ports(1)[0]
    serve = _lighttpd(lighttpd, folder, root, port) if lighttpd else _cgi_server(folder, root, port)
    with serve:
        yield f"http://127.0.0.1:{port}/bench/push.git", "lighttpd" if lighttpd else "http.server (CGI)"


def _backend() -> str:
    path = subprocess.run(["git", "--exec-path"], check=True, capture_output=True, text=True).stdout.strip()
    return f"{path}/git-http-backend"


@contextmanager
def _lighttpd(binary: str, folder: Path, root: Path, port: int) -> Iterator[None]:
    settings = folder / "lighttpd.conf"
    settings.write_text(
        f"""
server.modules = ("mod_alias", "mod_cgi", "mod_setenv")
server.document-root = "{root}"
server.bind = "127.0.0.1"
server.port = {port}
server.errorlog = "{folder}/lighttpd.log"
alias.url = ("/" => "{_backend()}/")
cgi.assign = ("" => "")
setenv.set-environment = ("GIT_PROJECT_ROOT" => "{root}", "GIT_HTTP_EXPORT_ALL" => "1")
"""
    )
    process = subprocess.Popen([binary, "-D", "-f", str(settings)], stdin=subprocess.DEVNULL, env=git_environment(folder))
    try:
        if not wait_for(lambda: connects("127.0.0.1", port) or process.poll() is not None, 10) or process.poll() is not None:
            raise RuntimeError(f"lighttpd did not start; see {folder}/lighttpd.log")
        yield
    finally:
        process.terminate()
        process.wait(timeout=10)


@contextmanager
def _cgi_server(folder: Path, root: Path, port: int) -> Iterator[None]:
    backend, environment = _backend(), git_environment(folder)

    class Handler(BaseHTTPRequestHandler):
        """RFC 3875, as far as ``git http-backend`` needs it."""

        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            length = self.headers.get("Content-Length", "")
            variables = {
                "GIT_PROJECT_ROOT": str(root),
                "GIT_HTTP_EXPORT_ALL": "1",
                "PATH_INFO": path,
                "QUERY_STRING": query,
                "REQUEST_METHOD": self.command,
                "CONTENT_TYPE": self.headers.get("Content-Type", ""),
                "CONTENT_LENGTH": length,
                "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
                "HTTP_GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
                "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
                "REMOTE_ADDR": "127.0.0.1",
                "SERVER_PROTOCOL": "HTTP/1.1",
            }
            body = self.rfile.read(int(length or 0))
            done = subprocess.run([backend], input=body, capture_output=True, env=environment | variables, check=True)
            head, _, answer = done.stdout.partition(b"\r\n\r\n")
            fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
            self.send_response(int(fields.pop("Status", "200").split()[0]))
            for name, value in fields.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            """Quiet."""

    Handler.protocol_version = "HTTP/1.1"
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)


def git(home: Path, folder: Path, *arguments: str) -> None:
    """Git as if nobody had configured it; what it says goes to stderr."""
    run(["git", *arguments], git_environment(home), sys.stderr, folder)


def run(command: list[str], environment: dict[str, str], out: IO[str] | int, folder: Path | None = None) -> None:
    """Until it ends, and no longer: ``subprocess.run`` with a time limit looks for the end after 0.5, 1.5, 3.5, 7.5, 15.5, 31.5
    and 63.5 ms, then every 50 ms, and that is what a measurement would measure.

    Raises:
        CalledProcessError: it failed, or was killed because it took too long.
    """
    with subprocess.Popen(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=out) as process:
        guard = threading.Timer(PUSH_TIMEOUT_S, process.kill)
        guard.start()
        try:
            code = process.wait()
        finally:
            guard.cancel()
    if code:
        raise subprocess.CalledProcessError(code, command)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Wall time of a small push, as a ratio to git http-backend.")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--broker", default=os.environ.get("GITQUORUM_BROKER", "auto"))
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _sentence(result: dict[str, object]) -> str:
    return (
        f"small push, median of {result['runs']}: cluster of 3 {result['cluster_ms']} ms ({result['broker']}), "
        f"git http-backend {result['http_backend_ms']} ms ({result['web_server']}): ratio {result['ratio']}\n"
    )


if __name__ == "__main__":
    sys.exit(main())
