"""A private RabbitMQ: the distribution's own server, run by the current user from one folder, on loopback ports.

Owns every process it starts (the Erlang machine and its port mapper ``epmd``) and nothing else. Both pids are remembered in
the folder, so that a later process can stop or kill them; a process counts as ours only while its environment names this
folder as its HOME, so a foreign one that got the same pid is never touched. Ports, cookie and node name are chosen once and
kept, so that a broker that was killed comes back where its clients look for it. Not known here: what the definitions say
(``broker/topology.py``).

The wrapper in /usr/sbin must not be used: as root it runs ``su rabbitmq``, as anybody else it refuses. The script behind it
becomes the Erlang machine itself (``exec``) when told that it runs under systemd, so the pid is the broker's own.
"""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

START_TIMEOUT_S = 60.0
"""A start takes 5 to 8 s; four times that on a crowded machine."""
STOP_TIMEOUT_S = 20.0
KILL_TIMEOUT_S = 5.0

_SCRIPTS = (
    "/usr/lib/rabbitmq/bin/rabbitmq-server",
    "/usr/lib/rabbitmq/sbin/rabbitmq-server",
    "/opt/homebrew/opt/rabbitmq/sbin/rabbitmq-server",
    "/usr/local/opt/rabbitmq/sbin/rabbitmq-server",
)
_PROGRAMS = ("beam.smp", "epmd", "erl_child_setup", "inet_gethost", "erlexec", "erl")
"""What Erlang runs as; of these, those with our HOME."""
_PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"

_children: list[subprocess.Popen[bytes]] = []
"""Those that this very process started: they outlive it, but while it lives it has to reap them."""


class RabbitmqRefused(Exception):
    """The private broker is not installed, or did not start; the text says why, and where its log is."""


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where a running private broker is."""

    amqp_port: int
    management_port: int
    pid: int


@dataclass(frozen=True, slots=True)
class _Place:
    """What is chosen once for a folder, and kept."""

    amqp_port: int
    management_port: int
    distribution_port: int
    epmd_port: int
    nodename: str


def server_script() -> Path | None:
    """The ``rabbitmq-server`` that can be run by anybody, or ``None`` if there is none on this machine."""
    if shutil.which("erl") is None:
        return None
    found = shutil.which("rabbitmq-server")
    candidates = [*_SCRIPTS, *([found] if found and not found.startswith("/usr/sbin/") else [])]
    return next((Path(script) for script in candidates if os.access(script, os.X_OK)), None)


class PrivateRabbitmq:
    """One broker in ``folder``. All methods block, for seconds; call them from a thread where a loop runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()

    def __repr__(self) -> str:
        return f"<PrivateRabbitmq {self.folder} {self.endpoints() or 'not running'}>"

    @property
    def log(self) -> Path:
        return self.folder / "log" / "broker.log"

    def endpoints(self) -> Endpoints | None:
        """Where it runs, or ``None`` when it does not; also for a broker that another process started."""
        broker = self._running("broker.pid")
        place = self._place_known()
        if broker is None or place is None:
            return None
        return Endpoints(place.amqp_port, place.management_port, broker.pid)

    def start(self, definitions: Mapping[str, Any], *, timeout_s: float = START_TIMEOUT_S) -> Endpoints:
        """Start it and wait until clients are served; they are served only after the definitions are loaded.

        Returns at once if it runs already. After ``stop`` or ``kill`` it comes back on the same ports, with its data.

        Raises:
            RabbitmqRefused: not installed, or not up in time; nothing is left running then.
        """
        running = self.endpoints()
        if running is not None:
            return running
        script = server_script()
        if script is None:
            raise RabbitmqRefused("rabbitmq-server is not installed; run: apt-get install rabbitmq-server")
        place = self._place()
        self._write_files(place, definitions)
        try:
            self._start_epmd(place)
            broker = self._start_broker(script, place)
            self._await_ready(broker, place, timeout_s)
        except BaseException:
            self.kill()
            raise
        return Endpoints(place.amqp_port, place.management_port, broker.pid)

    def stop(self) -> None:
        """End it in good order (it flushes its queues), then its port mapper; kill whatever does not go."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        self._end(signal.SIGKILL)

    # ------------------------------------------------------------ the folder

    def _place_known(self) -> _Place | None:
        try:
            return _Place(**json.loads((self.folder / "place.json").read_text()))
        except FileNotFoundError:
            return None

    def _place(self) -> _Place:
        known = self._place_known()
        if known is not None:
            return known
        self.folder.mkdir(parents=True, exist_ok=True)
        amqp, management, distribution, epmd = _free_ports(4)
        place = _Place(amqp, management, distribution, epmd, f"gitquorum-{secrets.token_hex(4)}@localhost")
        _write_private(self.folder / "place.json", json.dumps(asdict(place)))
        _write_private(self.folder / "home" / ".erlang.cookie", secrets.token_hex(20))
        (self.folder / "home" / ".erlang.cookie").chmod(0o400)
        return place

    def _write_files(self, place: _Place, definitions: Mapping[str, Any]) -> None:
        for name in ("log", "mnesia"):
            (self.folder / name).mkdir(exist_ok=True)
        _write_private(self.folder / "definitions.json", json.dumps(definitions, indent=2))
        _write_private(self.folder / "rabbitmq.conf", _configuration(place, self.folder))
        _write_private(self.folder / "enabled_plugins", "[rabbitmq_management].\n")
        _write_private(self.folder / "rabbitmq-env.conf", "")

    def _environment(self, place: _Place) -> dict[str, str]:
        # Nothing of the machine's own RabbitMQ may leak in: no variable of the caller that Erlang or RabbitMQ reads.
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RABBITMQ_", "ERL_", "NOTIFY_"))}
        return kept | {
            "HOME": str(self.folder / "home"),
            "RUNNING_UNDER_SYSTEMD": "true",
            "RABBITMQ_NODENAME": place.nodename,
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "rabbitmq-env.conf"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.folder / "advanced.config"),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_PID_FILE": str(self.folder / "rabbitmq.pid"),
            "RABBITMQ_DIST_PORT": str(place.distribution_port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "ERL_EPMD_PORT": str(place.epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }

    # ------------------------------------------------------------ processes

    def _start_epmd(self, place: _Place) -> None:
        # Started by us and in the foreground: the one that Erlang would start by itself is nobody's child, and stays.
        if self._running("epmd.pid") is not None:
            return
        epmd = shutil.which("epmd") or _bundled_epmd()
        process = self._spawn([epmd, "-port", str(place.epmd_port), "-address", "127.0.0.1"], place, "epmd.log")
        self._remember("epmd.pid", process)
        _wait(lambda: _answers(place.epmd_port, b"", 0) or process.poll() is not None, 5.0)
        if process.poll() is not None:
            raise RabbitmqRefused(f"epmd did not start; see {self.folder / 'log' / 'epmd.log'}")

    def _start_broker(self, script: Path, place: _Place) -> subprocess.Popen[bytes]:
        process = self._spawn([str(script)], place, "console.log")
        self._remember("broker.pid", process)
        return process

    def _spawn(self, command: list[str], place: _Place, log: str) -> subprocess.Popen[bytes]:
        with (self.folder / "log" / log).open("ab") as output:
            process = subprocess.Popen(
                command,
                env=self._environment(place),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        _children.append(process)
        return process

    def _await_ready(self, broker: subprocess.Popen[bytes], place: _Place, timeout_s: float) -> None:
        def settled() -> bool:
            return broker.poll() is not None or (
                _answers(place.amqp_port, _PROTOCOL_HEADER, 1) and _answers(place.management_port, b"", 0)
            )

        in_time = _wait(settled, timeout_s)
        if broker.poll() is not None:
            raise RabbitmqRefused(f"rabbitmq-server ended with status {broker.returncode}: {self._last_words()}")
        if not in_time:
            raise RabbitmqRefused(f"rabbitmq-server was not ready within {timeout_s:.0f} s; see {self.log}")

    def _last_words(self) -> str:
        for path in (self.log, self.folder / "log" / "console.log"):
            with suppress(FileNotFoundError):
                lines = [line for line in path.read_text(errors="replace").splitlines() if "error" in line.lower()]
                if lines:
                    return f"{lines[-1][:300]} ({path})"
        return f"see {self.folder / 'log'}"

    def _remember(self, name: str, process: subprocess.Popen[bytes]) -> None:
        _write_private(self.folder / name, str(process.pid))

    def _running(self, name: str) -> psutil.Process | None:
        try:
            process = psutil.Process(int((self.folder / name).read_text()))
        except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
            return None
        return process if _alive(process) and self._ours(process) else None

    def _ours(self, process: psutil.Process) -> bool:
        # Not the start time: psutil derives it from the wall clock, which may be set while the broker runs.
        try:
            return process.environ().get("HOME") == str(self.folder / "home")
        except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
            return False

    def _end(self, how: signal.Signals) -> None:
        """The broker first, then whatever else of ours runs: a broker that misses its epmd starts one by itself."""
        broker = self._running("broker.pid")
        if broker is not None:
            _signal(broker, how)
            _wait(lambda: not _alive(broker), STOP_TIMEOUT_S)
        left = [p for p in psutil.process_iter(["name"]) if p.info["name"] in _PROGRAMS and self._ours(p)]
        for process in left:
            _signal(process, signal.SIGKILL)
        _wait(lambda: not any(map(_alive, left)), KILL_TIMEOUT_S)
        for name in ("broker.pid", "epmd.pid"):
            (self.folder / name).unlink(missing_ok=True)
        _children[:] = [child for child in _children if child.poll() is None]


def _signal(process: psutil.Process, how: signal.Signals) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(how)


def _alive(process: psutil.Process) -> bool:
    """Whether it still runs; a zombie does not, though its parent may take long, or for ever, to reap it."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _configuration(place: _Place, folder: Path) -> str:
    return "\n".join(
        (
            f"listeners.tcp.default = 127.0.0.1:{place.amqp_port}",
            "management.tcp.ip = 127.0.0.1",
            f"management.tcp.port = {place.management_port}",
            f"load_definitions = {folder / 'definitions.json'}",
            "log.file = broker.log",
            "log.file.level = info",
            "log.console = false",
            # A developer's machine: the default of 50 MB free disk, and 40 % of memory, would fit a dedicated host.
            "vm_memory_high_watermark.relative = 0.2",
            "disk_free_limit.absolute = 50MB",
            "heartbeat = 6",
            "",
        )
    )


def _write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read; whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    draft.replace(path)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def _answers(port: int, question: bytes, answer_bytes: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
            connection.sendall(question)
            return len(connection.recv(answer_bytes)) == answer_bytes if answer_bytes else True
    except OSError:
        return False


def _wait(condition: Callable[[], bool], timeout_s: float) -> bool:
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def _bundled_epmd() -> str:
    """Erlang installations that keep ``epmd`` out of the path have it beside the emulator."""
    root = subprocess.run(
        ["erl", "-noinput", "-eval", "io:put_chars(code:root_dir()), halt()."],
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    ).stdout
    found = sorted(Path(root).glob("erts-*/bin/epmd"))
    if not found:
        raise RabbitmqRefused("epmd, Erlang's port mapper, is not installed")
    return str(found[-1])
