"""Which ports are free on the loopback address, and who holds the others.

A port that was free may be taken a moment later; callers that lose that race hear it from the process they started.
"""

import socket
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack

import psutil


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a listener could be opened there now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def free_ports(count: int, avoid: Collection[int] = ()) -> list[int]:
    """``count`` different free ports that the kernel picked."""
    found: list[int] = []
    with ExitStack() as held:
        while len(found) < count:
            probe = held.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
            if port not in avoid:
                found.append(port)
    return found


def holder(port: int) -> psutil.Process | None:
    """The process that listens on ``port``, as far as this user may see it."""
    try:
        connections = psutil.net_connections("tcp")
    except psutil.Error:
        return None
    for connection in connections:
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port and connection.pid:
            try:
                return psutil.Process(connection.pid)
            except psutil.NoSuchProcess:
                return None
    return None


def who_holds(port: int) -> str:
    """A sentence that names who to stop."""
    process = holder(port)
    if process is None:
        return f"port {port} is in use by a process of another user; find it with: sudo ss -ltnp 'sport = :{port}'"
    try:
        # One line, whatever the process was given: arguments may hold newlines and escape sequences.
        words = "".join(each if each.isprintable() else " " for each in " ".join(process.cmdline())).split()
        command = " ".join(words)[:120] or process.name()
    except psutil.Error:
        command = "?"
    return f"port {port} is in use by pid {process.pid} ({command}); stop it with: kill {process.pid}"


def speaks_amqp(host: str, port: int, timeout_s: float = 1.0) -> bool:
    """Whether an AMQP 0-9-1 broker answers there: it greets with Connection.Start (frame type 1, class 10, method 10)."""
    try:
        with socket.create_connection((host, port), timeout=timeout_s) as peer:
            peer.settimeout(timeout_s)
            peer.sendall(b"AMQP\x00\x00\x09\x01")
            greeting = b""
            while len(greeting) < 11 and (more := peer.recv(11 - len(greeting))):
                greeting += more
    except OSError:
        return False
    return len(greeting) == 11 and greeting[0] == 1 and greeting[7:11] == b"\x00\x0a\x00\x0a"


def connects(host: str, port: int, timeout_s: float = 1.0) -> bool:
    """Whether anything listens there."""
    try:
        socket.create_connection((host, port), timeout=timeout_s).close()
    except OSError:
        return False
    return True


def wait_for(condition: Callable[[], bool], timeout_s: float, pause_s: float = 0.1) -> bool:
    """Whether ``condition`` became true in time."""
    give_up_at = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= give_up_at:
            return False
        time.sleep(pause_s)
    return True
