"""``gitquorum doctor``: what may keep a cluster from working on this machine, each problem with the command that fixes it.

Every check is a small function that returns findings; it changes nothing. Without a cluster the checks of the machine are
made, with one those of its folder, processes, ports and peers, too.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from node.command import brokers, docker, processes, sockets
from node.command.init import PORT
from node.command.output import CommandError, Exit, Output, table
from node.command.rabbitmq import server_script
from node.command.state import Cluster, Home, NodePlace
from node.command.status import node_status
from node.config import Config
from node.keys import KeyRefused, read_private
from node.storage.git import VERSION_MIN, version_of

FREE_BYTES_MIN = 1024**3


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    check: str
    state: str
    """``ok``, ``note`` (works, but…) or ``problem``."""
    detail: str
    fix: str = ""
    """The command that fixes it."""


def doctor(home: Home, output: Output) -> list[Finding]:
    """Look at everything, print it.

    Raises:
        CommandError: FAILED if there is a problem (after printing all of them).
    """
    findings = [finding for check in _MACHINE for finding in check()]
    if home.exists:
        cluster = home.load()
        findings += [finding for look in _CLUSTER for finding in look(home, cluster)]
    else:
        findings += ports_free([home.place(f"node-{number + 1}", PORT + number) for number in range(3)])
        findings += [writable(home.folder)]
    rows = [(f.state.upper() if f.state == "problem" else f.state, f.check, f.detail, f.fix) for f in findings]
    output.result([asdict(finding) for finding in findings], table(("", "check", "found", "fix with"), rows))
    problems = sum(finding.state == "problem" for finding in findings)
    if problems:
        raise CommandError(f"{problems} problem{'s' if problems > 1 else ''} found", Exit.FAILED)
    return findings


# ---------------------------------------------------------------- the machine


def python_version() -> list[Finding]:
    """Never a problem: the package does not install on a Python older than 3.11. Which one runs is worth knowing."""
    version = ".".join(str(part) for part in sys.version_info[:3])
    return [Finding("python", "ok", f"{version} ({sys.executable})")]


def git_version() -> list[Finding]:
    install = "apt-get install git"
    try:
        said = subprocess.run(["git", "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except FileNotFoundError:
        return [Finding("git", "problem", "not installed", install)]
    except (subprocess.SubprocessError, OSError) as error:
        return [Finding("git", "problem", f"does not run: {error}", install)]
    return [judge_git(said)]


def judge_git(said: str) -> Finding:
    """From the output of ``git --version``."""
    version = version_of(said)
    if version is None:
        return Finding("git", "problem", f"unknown version: {said.strip()}", "apt-get install git")
    if version < VERSION_MIN:
        wanted = ".".join(map(str, VERSION_MIN))
        return Finding("git", "problem", f"{said.strip()} is older than {wanted}, which a node needs", "apt-get install git")
    return Finding("git", "ok", said.strip())


def broker_available() -> list[Finding]:
    script = server_script()
    if script is not None:
        return [Finding("broker", "ok", f"rabbitmq-server: {script}")]
    if docker.engine():
        return [Finding("broker", "ok", "no rabbitmq-server, but a Docker engine")]
    return [
        Finding(
            "broker",
            "note",
            "no rabbitmq-server, no Docker engine: the direct transport is used",
            "apt-get install rabbitmq-server",
        )
    ]


def clock_set() -> list[Finding]:
    """Clocks matter to people only; a machine that believes it is long ago makes confusing histories."""
    if time.time() < 1_700_000_000:
        return [Finding("clock", "problem", time.strftime("it is set to %Y-%m-%d"), "timedatectl set-ntp true")]
    return [Finding("clock", "ok", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()))]


# ---------------------------------------------------------------- the cluster's folder


def writable(folder: Path) -> Finding:
    """Whether this user may write there, and how much room is left."""
    there = folder
    while not there.exists():
        there = there.parent
    name = str(folder)
    if not os.access(there, os.W_OK | os.X_OK):
        return Finding("disk", "problem", f"{name} cannot be written", f"sudo chown -R $USER {there}")
    free = shutil.disk_usage(there).free
    if free < FREE_BYTES_MIN:
        return Finding("disk", "problem", f"{name}: only {free // 1024**2} MiB free", f"df -h {there}")
    return Finding("disk", "ok", f"{name}: {free // 1024**3} GiB free")


def data_dirs(home: Home, cluster: Cluster) -> list[Finding]:
    return [writable(node.data) if node.data.is_dir() else _gone(node) for node in cluster.nodes]


def _gone(node: NodePlace) -> Finding:
    """No command: whether it may start empty depends on the others, and ``down --purge`` would remove theirs too."""
    return Finding("disk", "problem", f"{node.data} is missing", "docs/operations.md, Restore: one disk is lost")


def configurations(home: Home, cluster: Cluster) -> list[Finding]:
    return [_configuration(node) for node in cluster.nodes]


def _configuration(node: NodePlace) -> Finding:
    try:
        config = Config.from_file(node.config)
        read_private(config.private_key)
    except KeyRefused as error:
        return Finding("configuration", "problem", str(error), f"chmod 600 {node.key}")
    except (ValueError, OSError) as error:
        return Finding("configuration", "problem", f"{node.config}: {plain(error)}", f"${{EDITOR:-vi}} {node.config}")
    return Finding("configuration", "ok", str(node.config))


def plain(error: Exception) -> str:
    """A pydantic error is many lines; its sentences are what people need."""
    sentences = getattr(error, "errors", None)
    if not callable(sentences):
        return str(error)
    return "; ".join(_sentence(each["loc"], each["msg"]) for each in sentences())


def _sentence(place: tuple[object, ...], message: str) -> str:
    field = ".".join(str(part) for part in place)
    said = message.removeprefix("Value error, ")
    return f"{field}: {said}" if field else said


def stale_pids(home: Home, cluster: Cluster) -> list[Finding]:
    """A remembered process that is gone or is somebody else's now: the node crashed or the machine restarted."""
    stale = [node for node in cluster.nodes if node.process.exists() and processes.running(node) is None]
    if stale:
        return [Finding("processes", "problem", f"{n.id} is gone (log: {n.log})", f"gitquorum start {n.id}") for n in stale]
    running = sum(processes.running(node) is not None for node in cluster.nodes)
    return [Finding("processes", "ok", f"{running} of {len(cluster.nodes)} nodes running")]


def node_ports(home: Home, cluster: Cluster) -> list[Finding]:
    return ports_free([node for node in cluster.nodes if processes.running(node) is None])


def ports_free(nodes: list[NodePlace]) -> list[Finding]:
    """The ports of nodes that do not run."""
    taken = []
    for node in nodes:
        if not sockets.is_free(node.port):
            holder = sockets.holder(node.port)
            fix = f"kill {holder.pid}" if holder else f"sudo ss -ltnp 'sport = :{node.port}'"
            taken.append(Finding("ports", "problem", sockets.who_holds(node.port).split("; ")[0], fix))
    if taken or not nodes:
        return taken
    return [Finding("ports", "ok", f"free: {', '.join(str(node.port) for node in nodes)}")]


def cluster_broker(home: Home, cluster: Cluster) -> list[Finding]:
    choice = cluster.broker
    if choice.kind == "direct" or brokers.broker_of(home, cluster).running():
        return [Finding("broker in use", "ok", choice.title)]
    up = any(processes.running(node) for node in cluster.nodes)
    fix = "gitquorum broker start" if choice.kind != "url" else "gitquorum down && gitquorum up --broker auto"
    return [
        Finding("broker in use", "problem" if up else "note", f"{choice.title} does not run", fix if up else "gitquorum up")
    ]


def nodes_reachable(home: Home, cluster: Cluster) -> list[Finding]:
    """Only of nodes that run; the others were reported already."""
    found = []
    for node in cluster.nodes:
        if processes.running(node) is None:
            continue
        state = node_status(node)
        if not state["serving"]:
            found.append(Finding("nodes", "problem", state["reason"], f"gitquorum kill {node.id} && gitquorum start {node.id}"))
        elif not state["ready"]:
            found.append(Finding("nodes", "problem", f"{node.id} cannot write: {state['reason']}", _fix(node, state["reason"])))
        else:
            found.append(Finding("nodes", "ok", f"{node.id} is ready to write"))
    return found


def _fix(node: NodePlace, reason: str) -> str:
    """What helps a node that serves and takes no writes."""
    said = reason.lower()
    if "disk failed" in said:
        return f"dmesg | tail; if the disk is good again: gitquorum kill {node.id} && gitquorum start {node.id}"
    if "is rejoining" in said:
        return (
            f"start who is missing; gone for good: gitquorum rejoin --node {node.id} --from node-1,… --accept-loss (a dry run)"
        )
    if "another process uses the identity" in said:
        return f"stop the other process of {node.id}, then: gitquorum kill {node.id} && gitquorum start {node.id}"
    if "disk full" in said:
        return f"df -h {node.data}; it goes on by itself when there is room"
    return "gitquorum up"


_MACHINE: tuple[Callable[[], list[Finding]], ...] = (python_version, git_version, broker_available, clock_set)
_CLUSTER: tuple[Callable[[Home, Cluster], list[Finding]], ...] = (
    data_dirs,
    configurations,
    stale_pids,
    node_ports,
    cluster_broker,
    nodes_reachable,
)
