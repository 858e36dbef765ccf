"""The ``.gitquorum/`` folder: what a local cluster consists of. Nothing here starts or ends anything.

    .gitquorum/                 mode 0700: it holds private keys and broker passwords
      cluster.json              nodes, ports, and the broker that was chosen
      passwords.json            of the broker's users: one per node, and gitquorum-operator for the management UI
      lock                      held by the one command that changes the cluster at a time
      broker/                   the private RabbitMQ's own folder
      node-1/
        node.toml               its configuration (``node.config``)
        key.pem                 its private key
        data/                   repositories and journal
        log  log.1              what it printed, this and the time before
        process.json            pid and start time of its last process

``cluster.json`` is replaced by rename, so that a reader without the lock (``status``) sees the old one or the new one.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from node.command.output import CommandError, Exit

FOLDER = ".gitquorum"
LOCK_WAIT_S = 120.0
"""Longer than an ``up`` may take, so that a second ``up`` finds the cluster up rather than an error."""

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class NodePlace:
    """One node of the cluster: where it listens and where its files are."""

    id: str
    port: int
    folder: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def config(self) -> Path:
        return self.folder / "node.toml"

    @property
    def key(self) -> Path:
        return self.folder / "key.pem"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def process(self) -> Path:
        return self.folder / "process.json"


@dataclass(frozen=True, slots=True)
class BrokerChoice:
    """The broker that the nodes are configured for."""

    kind: str = "direct"
    """``local``, ``docker``, ``url`` or ``direct``."""
    wanted: str = "auto"
    """What ``--broker`` said; ``auto`` looks again at every start of a cluster that is down."""
    amqp_port: int = 0
    management_port: int = 0
    host: str = "127.0.0.1"
    container: str = ""
    """Name of the Docker container, if it is one."""

    @property
    def title(self) -> str:
        """For people."""
        where = {
            "local": f"RabbitMQ (rabbitmq-server of this machine, private, 127.0.0.1:{self.amqp_port})",
            "docker": f"RabbitMQ (Docker container {self.container}, 127.0.0.1:{self.amqp_port})",
            "url": f"RabbitMQ at {self.host}:{self.amqp_port} (the URL given)",
        }
        return where.get(self.kind, "no broker: direct transport (HTTP between the nodes)")

    @property
    def management_url(self) -> str | None:
        return f"http://127.0.0.1:{self.management_port}/" if self.management_port else None


@dataclass(frozen=True, slots=True)
class Cluster:
    """What ``cluster.json`` says."""

    name: str
    nodes: tuple[NodePlace, ...]
    broker: BrokerChoice

    def node(self, name: str) -> NodePlace:
        """By id, or by its number alone.

        Raises:
            CommandError: NOT_FOUND.
        """
        for node in self.nodes:
            if name in (node.id, node.id.removeprefix("node-")):
                return node
        raise CommandError(f"no node {name!r}; there are: {', '.join(node.id for node in self.nodes)}", Exit.NOT_FOUND)


class Home:
    """The folder itself."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()

    def __repr__(self) -> str:
        return f"<Home {self.folder}>"

    @property
    def file(self) -> Path:
        return self.folder / "cluster.json"

    @property
    def broker_folder(self) -> Path:
        return self.folder / "broker"

    @property
    def passwords(self) -> Path:
        return self.folder / "passwords.json"

    @property
    def exists(self) -> bool:
        return self.file.is_file()

    def make(self) -> None:
        """The folder alone; one that is there keeps its mode (what is secret in it is protected by itself)."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self.folder.mkdir(mode=0o700, exist_ok=True)

    def place(self, node_id: str, port: int) -> NodePlace:
        return NodePlace(node_id, port, self.folder / node_id)

    def load(self) -> Cluster:
        """Raises ``CommandError`` if there is no cluster here, or its file is damaged."""
        try:
            text = self.file.read_text()
        except FileNotFoundError:
            raise CommandError(
                f"no cluster in {self.folder}; start one with: gitquorum up (or name its folder with --directory)",
                Exit.NOT_FOUND,
            ) from None
        try:
            return self._parse(json.loads(text))
        except (ValueError, KeyError, TypeError) as error:
            raise CommandError(
                f"{self.file} is damaged ({error}); make a new cluster with: gitquorum down --purge && gitquorum up"
            ) from error

    def _parse(self, data: dict[str, Any]) -> Cluster:
        if data["format"] != _FORMAT:
            raise ValueError(f"format {data['format']} is not known to this version")
        nodes = tuple(self.place(node["id"], int(node["port"])) for node in data["nodes"])
        return Cluster(data["name"], nodes, BrokerChoice(**data["broker"]))

    def save(self, cluster: Cluster) -> None:
        self.make()
        data = {
            "format": _FORMAT,
            "name": cluster.name,
            "nodes": [{"id": node.id, "port": node.port} for node in cluster.nodes],
            "broker": asdict(cluster.broker),
        }
        write_private_text(self.file, json.dumps(data, indent=2) + "\n")

    def save_broker(self, cluster: Cluster, broker: BrokerChoice) -> Cluster:
        changed = replace(cluster, broker=broker)
        if changed != cluster:
            self.save(changed)
        return changed

    @contextmanager
    def locked(self, wait_s: float = LOCK_WAIT_S, *, make: bool = False) -> Iterator[None]:
        """Only one command changes a cluster at a time; the lock goes with the process. ``make``: the folder, if need be.

        Raises:
            CommandError: NOT_FOUND if there is no folder; UNAVAILABLE if another command does not finish in ``wait_s``.
        """
        if make:
            self.make()
        elif not self.folder.is_dir():
            self.load()
        give_up_at = time.monotonic() + wait_s
        with open(self.folder / "lock", "w") as file:
            while not _try_lock(file.fileno()):
                if time.monotonic() >= give_up_at:
                    raise CommandError(f"another gitquorum command is at work in {self.folder}; try again", Exit.UNAVAILABLE)
                time.sleep(0.1)
            yield


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def write_private_text(path: Path, text: str) -> None:
    """Replace ``path`` by rename; readable by its owner only."""
    fresh = path.with_name(path.name + ".new")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
