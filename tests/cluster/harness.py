"""A whole cluster for tests: real node processes and a real broker, run through the command ``gitquorum``; stock git to use it.

Everything is started and ended as a person would (``up``, ``kill``, ``start``, ``broker kill`` …), in a folder and on ports of
its own. Whatever a test waits for has a deadline, and what did not happen is said. Processes are known by their id, found by
the cluster's folder on their command line; ``close`` ends every one of them and fails if one is left.
"""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import psutil

from node.command import docker
from node.command.client import Answer, NodeSilent, request
from tests.cluster.given_broker import GivenVhost
from tests.cluster.sources import Source

DEADLINE_S = 2.0
"""``Config.prepare_timeout_s``, which the tests leave as it is."""

ABORT_S = 0.6
"""``Config.abort_timeout_s``."""

NODES = (1, 2, 3)
READY_TIMEOUT_S = 60.0
LOCAL = {"X-Gitquorum-Consistency": "local"}

GIT = os.environ.get("GITQUORUM_TEST_GIT", "git")
"""The client's git; the nodes run the one on the path."""

Got = TypeVar("Got")

_TXN = re.compile(r"\b\d{8}-[0-9a-f]{20}(?:\.\d+)?\b")
_numbers = count(1)


@dataclass(frozen=True)
class Ran:
    """What a program did."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def said(self) -> str:
        return self.out + self.err

    @property
    def transaction(self) -> str:
        """The transaction id that it named."""
        found = _TXN.findall(self.said)
        assert found, f"no transaction id in: {self.said}"
        return str(found[-1])

    def json(self) -> Any:
        return json.loads(self.out)


def run(
    command: list[str], env: Mapping[str, str], cwd: Path, timeout_s: float = 90.0, ok: bool = True, stdin: bytes = b""
) -> Ran:
    """Run it to its end; ``ok``: anything but success fails the test with what it said."""
    began = time.monotonic()
    done = subprocess.run(command, env=dict(env), cwd=cwd, input=stdin, capture_output=True, check=False, timeout=timeout_s)
    seconds = time.monotonic() - began
    ran = Ran(done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace"), seconds)
    assert not ok or ran.code == 0, f"{command} ended with {ran.code} after {seconds:.1f} s:\n{ran.said}"
    return ran


def wait(condition: Callable[[], Got | None], timeout_s: float, what: str, pause_s: float = 0.05) -> Got:
    """Wait until ``condition`` gives something; returns it."""
    give_up_at = time.monotonic() + timeout_s
    while not (got := condition()):
        assert time.monotonic() < give_up_at, f"not within {timeout_s:g} s: {what}"
        time.sleep(pause_s)
    return got


# ---------------------------------------------------------------- git


def git_environment(**more: str) -> dict[str, str]:
    """Nothing of the person who runs the tests."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": "/nonexistent",
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_AUTHOR_NAME": "Ada",
        "GIT_AUTHOR_EMAIL": "ada@example.org",
        "GIT_COMMITTER_NAME": "Ada",
        "GIT_COMMITTER_EMAIL": "ada@example.org",
        **more,
    }


def git(*arguments: str, cwd: Path, ok: bool = True, timeout_s: float = 90.0, stdin: bytes = b"", **env: str) -> Ran:
    """Stock git with an environment of its own."""
    settings = ("-c", "init.defaultBranch=main", "-c", "core.fsync=none", "-c", "gc.auto=0", "-c", "maintenance.auto=false")
    return run([GIT, *settings, *arguments], git_environment(**env), cwd, timeout_s, ok, stdin)


def refs_of(listing: str) -> dict[str, str]:
    """``git ls-remote`` and ``git show-ref`` as ref → object name; HEAD and peeled tags left out."""
    pairs = (line.split() for line in listing.splitlines())
    return {ref: oid for oid, ref in pairs if ref != "HEAD" and not ref.endswith("^{}")}


class Work:
    """A working copy."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def init(cls, path: Path) -> "Work":
        git("init", "--quiet", str(path), cwd=path.parent)
        return cls(path)

    def git(self, *arguments: str, ok: bool = True, **env: str) -> Ran:
        return git(*arguments, cwd=self.path, ok=ok, timeout_s=90.0, stdin=b"", **env)

    def commit(self, text: str = "", size: int = 200) -> str:
        """One commit more on the current branch; ``size`` bytes that do not compress."""
        (self.path / "file").write_text(f"{text} {random.randbytes(size // 2).hex()}\n")
        self.git("add", "file")
        self.git("commit", "--quiet", "-m", text or "work")
        return self.tip()

    def tip(self, name: str = "HEAD") -> str:
        return self.git("rev-parse", name).out.strip()

    def refs(self) -> dict[str, str]:
        return refs_of(self.git("show-ref", ok=False).out)

    def pack(self, new: str, old: str) -> bytes:
        """What ``new`` has and ``old`` has not, as deltas on what ``old`` has where that is smaller."""
        command = [GIT, "pack-objects", "--quiet", "--thin", "--revs", "--stdout"]
        wanted = f"{new}\n^{old}\n".encode()
        done = subprocess.run(command, cwd=self.path, env=git_environment(), input=wanted, capture_output=True, check=True)
        return done.stdout

    def hook(self, name: str, script: str) -> None:
        """A client hook. ``pre-push`` runs when the refs were read, and nothing has been sent."""
        path = self.path / ".git" / "hooks" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def is_ancestor(self, old: str, new: str) -> bool:
        return self.git("merge-base", "--is-ancestor", old, new, ok=False).code == 0


# ---------------------------------------------------------------- the cluster


@dataclass
class Cluster:
    """Nodes 1, 2, 3 in ``folder/.gitquorum``. Numbers name nodes."""

    folder: Path
    broker: str
    """``rabbitmq`` or ``direct``."""
    source: Source | None = None
    """Where the RabbitMQ comes from."""
    base_port: int = 0
    _tainted: dict[int, str] = field(default_factory=dict)
    """Nodes that are not as ``up`` made them, and what was done to them."""
    _broker_tainted: bool = False
    _vhost: GivenVhost | None = None
    _marks: dict[int, int] = field(default_factory=dict)

    # ------------------------------------------------------------ its life

    def up(self) -> Ran:
        """Start it, or what is missing of it. Ports are looked for until a free range holds."""
        if (self.home / "cluster.json").exists():
            return self.cli("up", *self._wish(), timeout_s=120)
        self.folder.mkdir(parents=True, exist_ok=True)
        for _ in range(5):
            self.base_port = free_port_range(len(NODES))
            ran = self.cli("up", "--base-port", str(self.base_port), *self._wish(), ok=False, timeout_s=120)
            if ran.code == 0 or "is in use by" not in ran.err:
                break
            self.cli("down", "--purge")
        assert ran.code == 0, f"{ran.said}\n{self.logs()}"
        return ran

    def _wish(self) -> tuple[str, ...]:
        """Which broker ``up`` shall use; said every time, so that one that does not start is never replaced by another."""
        if self.source is None:
            return ("--broker", "direct")
        if self.source.kind == "url":
            self._vhost = self._vhost or GivenVhost(self.source)
            return ("--broker", self._vhost.url)
        return ("--broker", self.source.kind, *(("--image", self.source.image) if self.source.image else ()))

    @property
    def _container(self) -> docker.Container:
        return docker.Container(self.home / "broker")

    def close(self) -> None:
        """End everything; nothing of it may be left."""
        try:
            self._end_processes()
        finally:
            if self._vhost is not None:
                self._vhost.close()
            if self.source and self.source.kind == "docker":
                left = self._container.exists()
                self._container.remove()
                assert not left, f"gitquorum down left the container {self._container.name}"

    def _end_processes(self) -> None:
        for pid in self.processes():
            _signal(pid, signal.SIGCONT)
        with suppress(AssertionError, subprocess.TimeoutExpired):
            self.cli("down", timeout_s=60)
        left = self.processes()
        for pid in left:
            _signal(pid, signal.SIGKILL)
        assert not left, f"gitquorum down left {left}"

    def heal(self) -> None:
        """As ``up`` made it, whatever a test did to it."""
        for node, how in list(self._tainted.items()):
            if how == "paused":
                self.resume(node)
            elif how == "armed":
                self.kill(node)
        if self._broker_tainted:
            self.broker_start()
        for node in NODES:
            if self._alarmed(node):  # a node tells of an alarm until it is started again
                self.kill(node)
        if self._tainted or not self.ready():
            self.up()
            self._tainted.clear()
        self._marks = {node: self._log(node).stat().st_size for node in NODES}

    def _alarmed(self, node: int) -> bool:
        try:
            return bool(self.get(node, "/health").body["problem"].startswith("alarm"))
        except NodeSilent:
            return False

    def ready(self) -> bool:
        """Whether every node has a write quorum and every peer in reach."""
        for node in NODES:
            try:
                ready = self.get(node, "/readyz?role=write")
                health = self.get(node, "/health")
            except NodeSilent:
                return False
            if not ready.ok or any(peer["state"] != "alive" for peer in health.body["peers"]):
                return False
        return True

    # ------------------------------------------------------------ the command

    @property
    def home(self) -> Path:
        return self.folder / ".gitquorum"

    def cli(self, *arguments: str, ok: bool = True, timeout_s: float = 60.0, env: Mapping[str, str] | None = None) -> Ran:
        """``gitquorum …`` on this cluster."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("GITQUORUM_")}
        command = [sys.executable, "-P", "-m", "node", "-C", str(self.home), *arguments]
        return run(command, {**kept, "COLUMNS": "200", **(env or {})}, self.folder, timeout_s, ok)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.cli("status", "--json").json()
        return found

    def tx_show(self, txn: str, node: int) -> dict[str, Any]:
        """``tx show`` asked of one node."""
        shown: dict[str, Any] = self.cli("tx", "show", txn, "--node", str(node), "--json").json()
        return shown

    # ------------------------------------------------------------ failures

    def tainted(self, node: int) -> None:
        """A test killed it by other means."""
        self._tainted[node] = "killed"

    def kill(self, *nodes: int) -> None:
        """SIGKILL to all of them in the same moment, as ``gitquorum kill`` does it."""
        for node in nodes:
            self._tainted[node] = "killed"
        pids = [self.pid(node) for node in nodes]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            wait(lambda pid=pid: not _alive(pid), 10, f"pid {pid} ends")  # type: ignore[misc]

    def start(self, *nodes: int) -> None:
        """Start what was killed; several side by side. Returns when they serve."""
        if len(nodes) == 1:
            self.cli("start", str(nodes[0]))
        else:
            self.up()
        for node in nodes:
            self._tainted.pop(node, None)

    def arm(self, fault: str, *nodes: int) -> None:
        """Start these again with an armed fault point (node/faults.py), and wait until all is well."""
        self.start_with({"GITQUORUM_FAULT_POINTS": json.dumps([fault])}, *nodes)

    def start_with(self, env: Mapping[str, str], *nodes: int) -> None:
        """Start these again with settings for this test only, and wait until all is well."""
        self.kill(*nodes)
        self.cli("up", *self._wish(), env=env, timeout_s=120)
        for node in nodes:
            self._tainted[node] = "armed"
        wait(self.ready, READY_TIMEOUT_S, "the cluster is ready again")

    def fired(self, node: int, fault: str) -> int:
        """How often this fault fired since the test began."""
        return self.log(node).count(f"fault {fault} fired")

    def pause(self, node: int) -> None:
        """SIGSTOP."""
        self._tainted[node] = "paused"
        os.kill(self.pid(node), signal.SIGSTOP)

    def resume(self, node: int) -> None:
        os.kill(self.pid(node), signal.SIGCONT)
        self._tainted.pop(node, None)

    def knocking(self, node: int) -> bool:
        """Whether bytes of a client wait that the node has not read, or not even taken the connection of."""
        port = self.base_port + node - 1
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            _, local, _, state, queues, *_ = line.split()
            if local.endswith(f":{port:04X}") and state == "01" and int(queues.split(":")[1], 16):
                return True
        return False

    def will_be_paused(self, *nodes: int) -> str:
        """A line of shell that pauses them; for hooks."""
        for node in nodes:
            self._tainted[node] = "paused"
        return "kill -STOP " + " ".join(str(self.pid(node)) for node in nodes)

    def will_be_killed(self, *nodes: int) -> str:
        """A line of shell that kills them; for hooks."""
        for node in nodes:
            self._tainted[node] = "killed"
        return "kill -KILL " + " ".join(str(self.pid(node)) for node in nodes)

    def broker_kill(self) -> None:
        """SIGKILL, as ``gitquorum broker kill`` does it: to the process, or by ``docker kill``."""
        self._broker_tainted = True
        self.cli("broker", "kill")

    def broker_start(self) -> None:
        self.cli("broker", "start", timeout_s=90)
        self._broker_tainted = False

    def pid(self, node: int) -> int:
        """Of the node's process, which runs."""
        config = str(self.home / f"node-{node}" / "node.toml")
        found = [process for process in _processes() if config in _command(process)]
        pids = {process.pid for process in found}
        # A child of the node that has not become a git process yet still bears the node's command line.
        own = [process.pid for process in found if _parent(process) not in pids]
        assert len(own) == 1, f"node-{node} runs {len(own)} times"
        return own[0]

    def processes(self) -> list[int]:
        """Of nodes and broker, helpers included."""
        home = str(self.home)
        return [
            process.pid
            for process in _processes()
            if any(home in word for word in _command(process)) or _cwd(process).startswith(home)
        ]

    # ------------------------------------------------------------ HTTP

    def url(self, node: int, name: str = "") -> str:
        """Of a node, or of a repository on it."""
        base = f"http://127.0.0.1:{self.base_port + node - 1}"
        return f"{base}/{name}.git" if name else base

    def get(self, node: int, path: str, **headers: str) -> Answer:
        return request(self.url(node), "GET", path, headers={k.replace("_", "-"): v for k, v in headers.items()}, timeout_s=15)

    def local(self, node: int, path: str) -> Answer:
        """What this node knows by itself."""
        return request(self.url(node), "GET", path, headers=LOCAL, timeout_s=15)

    def post(self, node: int, path: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Answer:
        return request(self.url(node), "POST", path, body=body, headers=headers, timeout_s=15)

    def create(self, node: int = 1, label: str = "r") -> str:
        """A new empty repository; returns its name."""
        name = f"{label}/{self.broker}-{next(_numbers)}"
        answer = self.post(node, "/repos", {"repo_id": name})
        assert answer.status == 201, answer
        return name

    def clone(self, node: int, name: str, path: Path, *options: str) -> Work:
        git("clone", "--quiet", *options, self.url(node, name), str(path), cwd=path.parent)
        return Work(path)

    def ls_remote(self, node: int, name: str) -> dict[str, str]:
        """The refs that a git client sees."""
        return refs_of(git("ls-remote", self.url(node, name), cwd=self.folder).out)

    def refs(self, node: int, name: str) -> dict[str, str]:
        """The refs that the API shows, by this node's own knowledge."""
        found: dict[str, str] = {}
        path: str | None = f"/repos/{name}/refs?limit=1000"
        while path is not None:
            answer = self.local(node, path)
            assert answer.ok, answer
            found |= {ref["name"]: ref["oid"] for ref in answer.body["refs"]}
            path = answer.body["next"] and f"/repos/{name}/refs?limit=1000&cursor={answer.body['next']}"
        return found

    def replicas(self, node: int, name: str) -> dict[int, dict[str, Any]]:
        """Where every replica stands, as ``node`` sees it, without asking for a majority first; nothing before it knows."""
        try:
            answer = self.local(node, f"/repos/{name}/replicas")
        except NodeSilent:
            return {}
        assert answer.status in (200, 404), answer
        return {int(each["node_id"][-1]): each for each in answer.body.get("replicas", [])}

    def history(self, node: int, name: str) -> list[dict[str, Any]]:
        """Every committed change, by this node's own journal."""
        changes: list[dict[str, Any]] = []
        while True:
            answer = self.local(node, f"/repos/{name}/history?since={len(changes)}&limit=200")
            assert answer.ok, answer
            changes += answer.body["changes"]
            if answer.body["next"] is None:
                return changes

    def version(self, node: int, name: str) -> int:
        return int(self.local(node, f"/repos/{name}").body["version"])

    def agree(self, name: str, *nodes: int, timeout_s: float = 10.0) -> int:
        """Wait until these replicas are current with equal digests and histories; returns the version."""
        asked = nodes or NODES

        def equal() -> bool:
            seen = self.replicas(asked[0], name)
            return {seen[node]["state"] for node in asked if node in seen} == {"current"} and (
                len({seen[node]["digest"] for node in asked}) == 1
            )

        wait(equal, timeout_s, f"{name} current and equal on {asked}")
        histories = [
            [(change["version"], change["digest"], txns_of(change)) for change in self.history(node, name)] for node in asked
        ]
        assert all(history == histories[0] for history in histories), histories
        return len(histories[0])

    def agree_on_absence(self, name: str) -> None:
        """Wait until every node knows by itself that there is no such repository."""
        for node in NODES:

            def gone(node: int = node) -> bool:
                return self.local(node, f"/repos/{name}").status == 404

            wait(gone, 10, f"node-{node} knows that {name} is gone")

    # ------------------------------------------------------------ the disk

    def bare(self, node: int, name: str) -> Path:
        return self.home / f"node-{node}" / "data" / f"{name}.git"

    def disk_refs(self, node: int, name: str) -> dict[str, str]:
        """What stock git finds in the bare repository."""
        return refs_of(git("show-ref", cwd=self.bare(node, name), ok=False).out)

    def leftovers(self, node: int, *, stage: bool = True) -> set[str]:
        """What should be gone when nothing is under way: quarantines, trash, temporary files, downloads. What was staged for
        a change that is applied by now is kept for a minute on purpose (node/storage/payloads.py)."""
        data = self.home / f"node-{node}" / "data"
        places = {".quarantine", ".trash", *([".stage"] if stage else [])}
        found = set()
        for folder, folders, files in os.walk(data):  # not rglob: the node works, and a folder that vanishes meanwhile is fine
            here = Path(folder).relative_to(data)
            unfinished = [name for name in (*folders, *files) if name.startswith("tmp_") or name.endswith((".lock", ".part"))]
            in_place = bool(here.parts) and here.parts[0] in places
            found |= {str(here / name) for name in (*unfinished, *(files if in_place else ()))}
        return found - {".lock"}

    @contextmanager
    def leaving_nothing(self, *, stage: bool = True, timeout_s: float = 5.0) -> Iterator[None]:
        """What the block does leaves no file behind on any node but what is in the repositories."""
        before = {node: self.leftovers(node, stage=stage) for node in NODES}
        yield
        for node in NODES:

            def gone(node: int = node) -> bool:
                return not self.leftovers(node, stage=stage) - before[node]

            wait(gone, timeout_s, f"node-{node} keeps {self.leftovers(node, stage=stage) - before[node]}")

    def _log(self, node: int) -> Path:
        return self.home / f"node-{node}" / "log"

    def log(self, node: int) -> str:
        """What the node wrote since the test began."""
        with open(self._log(node), "rb") as file:
            file.seek(self._marks.get(node, 0))
            return file.read().decode("utf-8", "replace")

    def logs(self, lines_max: int = 40) -> str:
        """The last words of everybody, for a failure."""
        parts = [f"---- node-{node} ----\n" + tail(self._log(node), lines_max) for node in NODES]
        if self.source and self.source.kind == "docker":
            command = ["docker", "logs", "--tail", "15", self._container.name]
            parts.append("---- broker ----\n" + run(command, os.environ, self.folder, 20, ok=False).said)
        elif self.broker == "rabbitmq":
            parts.append("---- broker ----\n" + tail(self.home / "broker" / "log" / "broker.log", 15))
        return "\n".join(parts)


def txns_of(change: Mapping[str, Any]) -> list[str]:
    """The transactions in one entry of a history."""
    return [each["transaction_id"] for each in change["requests"]]


def tail(path: Path, lines_max: int) -> str:
    with suppress(FileNotFoundError):
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines_max:])
    return "(no log)"


def free_port_range(count_: int) -> int:
    """The first of ``count_`` free ports in a row, below the range that the kernel picks from."""
    chance = random.SystemRandom()
    while True:
        first = chance.randrange(12_000, 30_000)
        with suppress(OSError):
            for port in range(first, first + count_):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
            return first


@contextmanager
def timed() -> Iterator[Callable[[], float]]:
    """Seconds since the block began."""
    began = time.monotonic()
    yield lambda: time.monotonic() - began


def _processes() -> Iterator[psutil.Process]:
    return psutil.process_iter()


def _command(process: psutil.Process) -> list[str]:
    with suppress(psutil.Error):
        if process.status() != psutil.STATUS_ZOMBIE:
            return process.cmdline()
    return []


def _parent(process: psutil.Process) -> int:
    with suppress(psutil.Error):
        return process.ppid()
    return 0


def _cwd(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return process.cwd()
    return ""


def _alive(pid: int) -> bool:
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE or process.num_threads() > 1
    except psutil.NoSuchProcess:
        return False


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
