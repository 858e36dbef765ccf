"""Start and end one process of the cluster. A pid is signalled only after it is known to be still the one we started.

A node is detached: a session of its own, no terminal, its output in a log file. ``process.json`` remembers pid and start
time; the kernel reuses pids, so a process counts as ours only if its start time *and* its command line (which names our
configuration file) are right. A zombie counts as gone: in a container nobody may be there to bury it.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from node.command.output import CommandError
from node.command.sockets import wait_for
from node.command.state import NodePlace, write_private_text

LOG_BYTES_MAX = 16 * 1024 * 1024
"""A log larger than this is set aside at the next start; one old log is kept."""

START_TIME_TOLERANCE_S = 2.0
"""The kernel tells start times relative to boot; the wall clock that they are added to may be corrected meanwhile."""

EXEC_TIMEOUT_S = 5.0

_PER_NODE = ("NODE_ID", "CLUSTER", "MEMBERS", "DATA_DIR", "PRIVATE_KEY", "HOST", "PORT", "TRANSPORT", "AMQP_URL")
"""Settings that belong to one node's file; in the environment they would hit all of them alike."""


def node_command(node: NodePlace) -> list[str]:
    """What runs one node. ``-P``: a folder called ``node`` where the command was typed is not the package."""
    return [sys.executable, "-P", "-m", "node", "serve", "--config", str(node.config)]


def node_environment(environ: Mapping[str, str]) -> dict[str, str]:
    dropped = {f"GITQUORUM_{name}" for name in _PER_NODE}
    return {name: value for name, value in environ.items() if name not in dropped}


def running(node: NodePlace) -> psutil.Process | None:
    """The node's process, if it lives."""
    try:
        remembered = json.loads(node.process.read_text())
        pid, created_at = int(remembered["pid"]), float(remembered["created_at"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return identify(pid, created_at, str(node.config))


def identify(pid: int, created_at: float, argument: str) -> psutil.Process | None:
    """The process ``pid`` if it started at ``created_at`` and has ``argument`` on its command line, else ``None``."""
    try:
        process = psutil.Process(pid)
        ours = (
            abs(process.create_time() - created_at) <= START_TIME_TOLERANCE_S
            and argument in process.cmdline()
            and process.status() != psutil.STATUS_ZOMBIE
        )
    except psutil.Error:
        return None
    return process if ours else None


def start(node: NodePlace, command: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> psutil.Process:
    """Start the node unless it runs; returns at once, before it is ready. ``environ``: not this command's own environment."""
    alive = running(node)
    if alive is not None:
        return alive
    _set_aside(node.log)
    with open(node.log, "ab") as log:
        child = subprocess.Popen(
            command or node_command(node),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=node.folder,
            env=node_environment(os.environ if environ is None else environ),
            start_new_session=True,
        )
    # An own child that nobody has waited for: it is there, if only as a zombie.
    process = psutil.Process(child.pid)
    created_at = process.create_time()
    write_private_text(node.process, json.dumps({"pid": child.pid, "created_at": created_at}) + "\n")
    # Popen returns in the middle of exec: for a moment there is no command line to know the process by.
    wait_for(lambda: identify(child.pid, created_at, str(node.config)) is not None or _is_gone(process), EXEC_TIMEOUT_S, 0.002)
    # It outlives this command on purpose: Popen would warn about that when it is collected.
    child.returncode = 0
    return process


def _set_aside(log: Path) -> None:
    if log.exists() and log.stat().st_size > LOG_BYTES_MAX:
        log.replace(log.with_name(log.name + ".1"))


def kill(node: NodePlace) -> int | None:
    """SIGKILL, as a power cut would; returns the pid, or ``None`` if it did not run."""
    process = running(node)
    if process is None:
        return None
    _signal(process, signal.SIGKILL)
    wait_gone([process], timeout_s=10)
    return process.pid


def stop(nodes: Sequence[NodePlace], timeout_s: float) -> dict[str, str]:
    """SIGTERM to all at once, SIGKILL to those that are not gone after ``timeout_s``; returns how each one went."""
    alive = {node.id: process for node in nodes if (process := running(node)) is not None}
    how = {node.id: "stopped" if node.id in alive else "was not running" for node in nodes}
    for process in alive.values():
        _signal(process, signal.SIGTERM)
    stubborn = wait_gone(list(alive.values()), timeout_s)
    for process in stubborn:
        _signal(process, signal.SIGKILL)
    wait_gone(stubborn, timeout_s=10)
    how.update({name: "killed: it did not stop in time" for name, process in alive.items() if process in stubborn})
    for node in nodes:
        node.process.unlink(missing_ok=True)
    return how


def wait_gone(processes: Sequence[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Those of ``processes`` that still live after ``timeout_s``. (``psutil.wait_procs`` would wait for zombies, too.)"""
    give_up_at = time.monotonic() + timeout_s
    alive = [process for process in processes if not _is_gone(process)]
    while alive and time.monotonic() < give_up_at:
        time.sleep(0.02)
        alive = [process for process in alive if not _is_gone(process)]
    return alive


def _is_gone(process: psutil.Process) -> bool:
    """A killed process is a zombie before its last thread has let go of ports and locks; it is gone only after that."""
    try:
        return not process.is_running() or (process.status() == psutil.STATUS_ZOMBIE and process.num_threads() <= 1)
    except psutil.NoSuchProcess:
        return True


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    """psutil checks once more that the pid was not reused."""
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return
    except psutil.AccessDenied as error:
        raise CommandError(f"pid {process.pid} belongs to another user; run the command as that user") from error


def last_lines(log: Path, count: int = 5, bytes_max: int = 4096) -> list[str]:
    """The end of a log, for an error message."""
    try:
        with open(log, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - bytes_max))
            return file.read().decode("utf-8", "replace").splitlines()[-count:]
    except FileNotFoundError:
        return []
