"""The field of battle: three node processes, a RabbitMQ of their own, and between them a network that can be cut.

Each node has its data on a file system of its own (ext4 on a loop device) where that is allowed, so that one disk can be full;
and a wall clock of its own (``wall_clock.c``, preloaded) where there is a C compiler. Every process is known by its id, and is
ended by it.
"""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import aiohttp

from broker.topology import OPERATOR, VHOST, definitions
from node.command.init import init, set_transport
from node.command.processes import node_command, node_environment
from node.command.rabbitmq import PrivateRabbitmq, server_script
from node.command.state import Cluster, Home, NodePlace
from node.protocol.ids import NodeId
from tests.cluster.brokers import ADMIN
from tests.cluster.harness import free_port_range
from tests.cluster.management import Management, word
from tests.nemesis.proxy import BROKER, Network

NODES = (1, 2, 3)
READY_TIMEOUT_S = 180.0
BROKER_TIMEOUT_S = 180.0
"""Both take seconds; a machine with twenty others at work needs a minute and more, and that is no fault of the cluster's."""
DISK_BYTES = 4 * 1024**3
"""Of a node's file system; its file is sparse, so only what is written takes room."""
FREE_BYTES_MIN = 256 * 1024**2
"""``Config.free_bytes_min``, left as it is."""
WALL_CLOCK = Path(__file__).with_name("wall_clock.c")


def missing() -> str:
    """Why there can be no field on this machine; empty if there can."""
    return "" if server_script() else "rabbitmq-server is not installed"


def own_disks() -> bool:
    """Whether each node can have a file system of its own."""
    return os.geteuid() == 0 and bool(shutil.which("mkfs.ext4")) and Path("/dev/loop-control").exists()


def compiler() -> str | None:
    """What can build ``wall_clock.c``."""
    return shutil.which("cc") or shutil.which("gcc")


@dataclass
class Node:
    """One of them; ``process`` is its last one."""

    number: int
    place: NodePlace
    process: subprocess.Popen[bytes] | None = None
    paused: bool = False
    mounted: bool = False

    @property
    def name(self) -> str:
        return self.place.id

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def url(self) -> str:
        return self.place.url

    @property
    def clock(self) -> Path:
        return self.place.folder / "clock"

    @property
    def filler(self) -> Path:
        return self.place.data / ".filler"

    def log(self) -> str:
        with suppress(FileNotFoundError):
            return self.place.log.read_text(errors="replace")
        return ""

    def free_bytes(self) -> int:
        found = os.statvfs(self.place.data)
        return found.f_bavail * found.f_frsize


@dataclass
class Field:
    """``open`` and ``close`` it; what the faults need is in between."""

    folder: Path
    disks: bool = field(default_factory=own_disks)
    clocks: bool = field(default_factory=lambda: compiler() is not None)
    rejoining: bool = field(default_factory=lambda: find_spec("node.rejoining") is not None)
    """Whether a node that lost its journal may come back without an operator (R4)."""
    repair: bool = field(default_factory=lambda: find_spec("node.repair") is not None)
    """Whether a node finds damage of what it stores, and mends it from the others (R3)."""
    nodes: dict[int, Node] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.network = Network(f"node-{number}" for number in NODES)
        self.rabbit = PrivateRabbitmq(self.folder / "broker")
        self.session: aiohttp.ClientSession | None = None
        self._home = Home(self.folder / "cluster")
        self._amqp_port = 0
        self._admin = Management("", "", "")

    # ------------------------------------------------------------ its life

    async def open(self) -> None:
        self._cluster = await asyncio.to_thread(self._make)
        if self.clocks:
            await asyncio.to_thread(self._build_clock)
        self.nodes = {number: Node(number, self._cluster.node(str(number))) for number in NODES}
        await self.broker_start()
        await self.network.open(lambda name: self._amqp_port if name == BROKER else self._cluster.node(name).port)
        for node in self.nodes.values():
            self._configure(node)
            self.set_clock(node.number, 0)
            if self.disks:
                await asyncio.to_thread(self._mount, node)
        for number in NODES:
            await self.start(number, wait=False)
        for number in NODES:
            await self.ready(number)

    @property
    def _library(self) -> Path:
        return self.folder / "wall_clock.so"

    def _build_clock(self) -> None:
        command = [compiler() or "cc", "-O2", "-shared", "-fPIC", "-o", str(self._library), str(WALL_CLOCK)]
        subprocess.run(command, check=True, capture_output=True)

    def _make(self) -> Cluster:
        return init(self._home, nodes=len(NODES), base_port=free_port_range(len(NODES)), name="nemesis")

    def _configure(self, node: Node) -> None:
        """It sees its peers and the broker through its own links."""
        text = node.place.config.read_text()
        for peer in self.nodes.values():
            if peer is not node:
                port = self.network.link(node.name, peer.name).port
                text = text.replace(f'url = "{peer.url}"', f'url = "http://127.0.0.1:{port}"')
        node.place.config.write_text(text)
        port = self.network.link(node.name, BROKER).port
        password = self.passwords[node.name]
        set_transport(node.place.config, f"amqp://{quote(node.name)}:{password}@127.0.0.1:{port}/{quote(VHOST, safe='')}")

    async def close(self) -> None:
        """End everything; returns when nothing of it runs."""
        for node in self.nodes.values():
            await asyncio.to_thread(self._end, node)
        await self.network.close()
        await asyncio.to_thread(self._broker_end)
        for node in self.nodes.values():
            if node.mounted:
                await asyncio.to_thread(subprocess.run, ["umount", str(node.place.data)], check=True)
                node.mounted = False

    def _end(self, node: Node) -> None:
        if node.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(node.process.pid, signal.SIGKILL)  # a session of its own: the git processes go with it
            node.process.wait(10)

    def _broker_end(self) -> None:
        if (at := self.rabbit.endpoints()) is not None:
            os.kill(at.pid, signal.SIGCONT)
        self.rabbit.kill()

    # ------------------------------------------------------------ nodes

    async def start(self, number: int, *, wait: bool = True, env: Mapping[str, str] | None = None) -> None:
        """Start it as it is on disk, with ``env`` besides."""
        node = self.nodes[number]
        assert not node.alive, f"{node.name} runs"
        node.process = await asyncio.to_thread(self._spawn, node, dict(env or {}))
        await self.network.back(node.name)
        if wait:
            await self.ready(number)

    def _spawn(self, node: Node, env: Mapping[str, str]) -> "subprocess.Popen[bytes]":
        kept = {name: value for name, value in os.environ.items() if not name.startswith("GITQUORUM_")}
        with node.place.log.open("ab") as log:
            return subprocess.Popen(
                node_command(node.place),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=node.place.folder,
                env={**node_environment(kept), **self._clock_environment(node), **env},
                start_new_session=True,
            )

    def _clock_environment(self, node: Node) -> dict[str, str]:
        return {"LD_PRELOAD": str(self._library), "WALL_CLOCK_FILE": str(node.clock)} if self.clocks else {}

    def set_clock(self, number: int, offset_s: int) -> None:
        """Its wall clock is wrong by this much from now on: the process has this file mapped."""
        file = self.nodes[number].clock
        with file.open("r+b" if file.exists() else "wb") as written:
            written.write(offset_s.to_bytes(8, sys.byteorder, signed=True))

    async def kill(self, *numbers: int) -> None:
        """SIGKILL to all of them in one moment."""
        for number in numbers:
            process = self.nodes[number].process
            if process is not None and process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
        for number in numbers:
            node = self.nodes[number]
            await asyncio.to_thread(self._end, node)
            node.paused = False
            await self.network.gone(node.name)

    async def stop(self, number: int) -> int:
        """SIGTERM; returns the exit code."""
        process = self.nodes[number].process
        assert process is not None
        process.terminate()
        return await asyncio.to_thread(process.wait, 30)

    def pause(self, number: int) -> None:
        process = self.nodes[number].process
        assert process is not None
        os.kill(process.pid, signal.SIGSTOP)
        self.nodes[number].paused = True

    def resume(self, number: int) -> None:
        node = self.nodes[number]
        if node.alive and node.process is not None:
            os.kill(node.process.pid, signal.SIGCONT)
        node.paused = False

    async def ready(self, number: int, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait until it serves; not until it has a quorum, which others may lack as well."""
        node = self.nodes[number]
        give_up_at = time.monotonic() + timeout_s
        while (await self.get(number, "/readyz"))[0] != 200:
            if not node.alive:
                raise RuntimeError(f"{node.name} ended: {node.log()[-2000:]}")
            if time.monotonic() > give_up_at:
                raise RuntimeError(f"{node.name} is not ready after {timeout_s:g} s: {node.log()[-2000:]}")
            await asyncio.sleep(0.1)

    async def get(self, number: int, path: str, **headers: str) -> tuple[int, Any]:
        """Status and JSON; status 0 if nobody answers."""
        return await self._ask(number, "GET", path, headers)

    async def post(self, number: int, path: str) -> tuple[int, Any]:
        return await self._ask(number, "POST", path, {})

    async def _ask(self, number: int, method: str, path: str, headers: Mapping[str, str]) -> tuple[int, Any]:
        if self.session is None:
            self.session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=15))
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            async with self.session.request(method, self.nodes[number].url + path, headers=named) as answer:
                return answer.status, await answer.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, OSError):
            return 0, None

    async def incarnation(self, number: int) -> int:
        """Which life of its journal it says it is in; 0 if it says nothing."""
        _, health = await self.get(number, "/health")
        return int(health["incarnation"]) if health else 0

    async def versions(self, number: int) -> dict[str, int]:
        """Of every repository, by the node's own knowledge."""
        _, page = await self.get(number, "/repos?limit=1000")
        return {each["repo_id"]: each["version"] for each in page["repositories"]} if page else {}

    # ------------------------------------------------------------ disks

    def _mount(self, node: Node) -> None:
        image = node.place.folder / "disk"
        with image.open("wb") as file:
            file.truncate(DISK_BYTES)
        options = ["-q", "-m", "0", "-E", "lazy_itable_init=1,nodiscard"]
        subprocess.run(["mkfs.ext4", *options, str(image)], check=True, capture_output=True)
        subprocess.run(["mount", "-o", "loop", str(image), str(node.place.data)], check=True, capture_output=True)
        node.mounted = True
        (node.place.data / "lost+found").rmdir()

    def fill(self, number: int, leave_bytes: int) -> None:
        """Take all room but ``leave_bytes`` of its disk, without writing: the blocks are only reserved."""
        node = self.nodes[number]
        with node.filler.open("ab") as file:
            wanted = node.free_bytes() - leave_bytes
            while wanted > 4096:
                try:
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, wanted)
                except OSError:
                    wanted //= 2  # blocks for the map itself
                else:
                    wanted = min(wanted, node.free_bytes() - leave_bytes)

    def wipe(self, number: int) -> None:
        """Everything below its data directory; it must not run."""
        for path in self.nodes[number].place.data.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def keep_copy(self, number: int) -> None:
        """Of its data directory, as it is now; it must not run."""
        kept = self.folder / f"kept-{number}"
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(self.nodes[number].place.data, kept, symlinks=True)

    def restore_copy(self, number: int) -> None:
        self.wipe(number)
        kept = self.folder / f"kept-{number}"
        shutil.copytree(kept, self.nodes[number].place.data, symlinks=True, dirs_exist_ok=True)
        shutil.rmtree(kept)

    def empty(self, number: int) -> None:
        self.nodes[number].filler.unlink(missing_ok=True)

    # ------------------------------------------------------------ the broker

    @property
    def passwords(self) -> dict[str, str]:
        """Made once."""
        file = self.folder / "passwords.json"
        if not file.exists():
            names = (*(f"node-{number}" for number in NODES), OPERATOR, ADMIN)
            file.write_text(json.dumps({name: os.urandom(12).hex() for name in names}))
        found: dict[str, str] = json.loads(file.read_text())
        return found

    def _definitions(self) -> dict[str, Any]:
        """The real ones, and an administrator for the faults."""
        data = definitions([NodeId(f"node-{number}") for number in NODES], self.passwords, 1000)
        (admin,) = definitions([NodeId(ADMIN)], {ADMIN: self.passwords[ADMIN]}, 0)["users"]
        data["users"].append({**admin, "tags": ["administrator"], "limits": {}})
        data["permissions"].append({"user": ADMIN, "vhost": VHOST, "configure": ".*", "write": ".*", "read": ".*"})
        return data

    async def broker_start(self) -> None:
        at = await asyncio.to_thread(self.rabbit.start, self._definitions(), timeout_s=BROKER_TIMEOUT_S)
        self._amqp_port = at.amqp_port
        self._admin = Management(f"http://127.0.0.1:{at.management_port}", ADMIN, self.passwords[ADMIN])
        if self.network.links:
            await self.network.back(BROKER)

    async def broker_kill(self) -> None:
        await asyncio.to_thread(self.rabbit.kill)
        await self.network.gone(BROKER)

    async def broker_stop(self) -> None:
        await asyncio.to_thread(self.rabbit.stop)
        await self.network.gone(BROKER)

    def broker_signal(self, number: signal.Signals) -> None:
        at = self.rabbit.endpoints()
        if at is not None:
            os.kill(at.pid, number)

    async def ctl(self, *arguments: str) -> str:
        """``rabbitmqctl`` on this broker."""
        script = server_script()
        assert script is not None
        place = json.loads((self.rabbit.folder / "place.json").read_text())
        env = {
            "PATH": os.environ["PATH"],
            "LC_ALL": "C.UTF-8",
            "HOME": str(self.rabbit.folder / "home"),
            "RABBITMQ_CONF_ENV_FILE": str(self.rabbit.folder / "rabbitmq-env.conf"),
            "ERL_EPMD_PORT": str(place["epmd_port"]),
        }
        command = [str(script.with_name("rabbitmqctl")), "-q", "-n", place["nodename"], *arguments]
        done = await asyncio.to_thread(subprocess.run, command, env=env, capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise RuntimeError(f"rabbitmqctl {' '.join(arguments)}: {done.stdout[-500:]}{done.stderr[-500:]}")
        return str(done.stdout)

    async def api(self, path: str, method: str = "GET", body: Any = None) -> Any:
        """The broker's management API, as its administrator."""
        return await asyncio.to_thread(self._admin.api, path, method, body)

    def queues(self, number: int) -> tuple[str, str]:
        """API paths of a node's two queues."""
        inbox, replies = (f"gitquorum.node-{number}.{what}" for what in ("inbox", "replies"))
        return f"queues/{VHOST}/{word(inbox)}", f"queues/{VHOST}/{word(replies)}"


def port_of(url: str) -> int:
    return urlsplit(url).port or 80
