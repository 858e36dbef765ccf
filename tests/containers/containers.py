"""Three node containers and a RabbitMQ container on one network, started by testcontainers; stock git through published ports.

The secrets are those of ``gitquorum init --compose``, so that what is tested here is what ``compose.yaml`` mounts. Published
ports are on 127.0.0.1 and chosen by the engine, anew at every start of a container.
"""

import json
import os
import sys
import warnings
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any

from node.command.client import NodeSilent, request
from tests.cluster.harness import NODES, Ran, git, refs_of, run, wait
from tests.containers.engine import ROOT, Engine

with warnings.catch_warnings():
    # Of its own decorator, which its own RabbitMqContainer uses.
    warnings.filterwarnings("ignore", "The @wait_container_is_ready decorator is deprecated", DeprecationWarning)
    from testcontainers.community.rabbitmq import RabbitMqContainer
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.network import Network

HEALTHY_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 30
"""``stop_grace_period`` in compose.yaml."""

_numbers = count(1)


def init_compose(folder: Path, *options: str, env: dict[str, str] | None = None) -> Ran:
    """``gitquorum init --compose`` in a folder with a copy of compose.yaml."""
    (folder / "compose.yaml").write_bytes((ROOT / "compose.yaml").read_bytes())
    command = [sys.executable, "-P", "-m", "node", "init", "--compose", *options]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GITQUORUM_")}
    return run(command, {**kept, **(env or {})}, folder)


def settings(folder: Path) -> dict[str, str]:
    """The lines of ``.env``."""
    lines = (folder / ".env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


class Containers:
    """The cluster. Numbers name nodes."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self._engine = engine
        self._folder = folder
        self._stack = ExitStack()
        self._nodes: dict[int, DockerContainer] = {}
        self._rabbitmq: RabbitMqContainer | None = None

    def __enter__(self) -> "Containers":
        with ExitStack() as stack:
            init_compose(self._folder)
            network = Network()
            network.name = f"{self._engine.token}-network"
            stack.callback(network._docker.client.close)  # it leaves its client's sockets open
            stack.enter_context(network)
            secrets = self._folder / ".gitquorum-compose"
            self._rabbitmq = stack.enter_context(self._make_rabbitmq(secrets, network))
            for node in NODES:
                self._nodes[node] = stack.enter_context(self._make_node(node, secrets, network))
            wait(self.ready, HEALTHY_TIMEOUT_S, "three node containers are ready to write")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def _make_rabbitmq(self, secrets: Path, network: Network) -> RabbitMqContainer:
        """testcontainers waits until it lets ``node-1`` in: with its definitions loaded, that is."""
        password = read_passwords(secrets)["node-1"]
        made = RabbitMqContainer(self._engine.rabbitmq_image, username="node-1", password=password, vhost="gitquorum")
        made.ports["5672"] = ("127.0.0.1", None)  # type: ignore[assignment]
        made.with_name(f"{self._engine.token}-rabbitmq").with_network(network).with_network_aliases("rabbitmq")
        made.with_volume_mapping(str(secrets / "broker" / "definitions.json"), "/etc/rabbitmq/gitquorum.json")
        made.with_volume_mapping(str(secrets / "broker" / "rabbitmq.conf"), "/etc/rabbitmq/conf.d/90-gitquorum.conf")
        return made.with_kwargs(hostname="rabbitmq")

    def _make_node(self, node: int, secrets: Path, network: Network) -> DockerContainer:
        name = f"node-{node}"
        made = DockerContainer(self._engine.image)
        made.ports["3001"] = ("127.0.0.1", None)  # type: ignore[assignment]
        made.with_name(f"{self._engine.token}-{name}").with_network(network).with_network_aliases(name)
        made.with_volume_mapping(str(secrets / name), "/etc/gitquorum").with_tmpfs_mount("/tmp")
        user = settings(self._folder)["GITQUORUM_UID"]
        return made.with_kwargs(hostname=name, user=f"{user}:0", read_only=True, cap_drop=["ALL"])

    # ------------------------------------------------------------ its life

    def ready(self) -> bool:
        """Whether every node has a write quorum and every peer in reach."""
        for node in NODES:
            try:
                ready = request(self.url(node), "GET", "/readyz?role=write", timeout_s=5)
                peers = request(self.url(node), "GET", "/health", timeout_s=5).body["peers"]
            except (NodeSilent, ConnectionError):
                return False
            if not ready.ok or any(peer["state"] != "alive" for peer in peers):
                return False
        return True

    def heal(self) -> None:
        for container in (self.rabbitmq, *map(self.node, NODES)):
            container.reload()
            if container.status != "running":
                container.start()
        wait(self.ready, HEALTHY_TIMEOUT_S, "the containers are ready again")

    def node(self, node: int) -> Any:
        """The engine's own object: kill, start, stop, exec_run …"""
        return self._nodes[node].get_wrapped_container()

    @property
    def rabbitmq(self) -> Any:
        assert self._rabbitmq is not None
        return self._rabbitmq.get_wrapped_container()

    def logs(self, lines_max: int = 40) -> str:
        named = {"rabbitmq": self.rabbitmq, **{f"node-{node}": self.node(node) for node in NODES}}
        return "\n".join(f"---- {name} ----\n{each.logs(tail=lines_max).decode()}" for name, each in named.items())

    # ------------------------------------------------------------ a client

    def url(self, node: int, name: str = "") -> str:
        container = self.node(node)
        container.reload()
        published = container.ports.get("3001/tcp")
        if not published:
            raise ConnectionError(f"node-{node} publishes no port: it does not run")
        base = f"http://127.0.0.1:{published[0]['HostPort']}"
        return f"{base}/{name}.git" if name else base

    def create(self, node: int = 1) -> str:
        name = f"containers/r{next(_numbers)}"
        answer = request(self.url(node), "POST", "/repos", body={"repo_id": name}, timeout_s=15)
        assert answer.status == 201, answer
        return name

    def refs(self, node: int, name: str) -> dict[str, str]:
        return refs_of(git("ls-remote", self.url(node, name), cwd=self._folder).out)

    def states(self, node: int, name: str) -> list[str]:
        """Of all replicas, as one node sees them."""
        answer = request(self.url(node), "GET", f"/repos/{name}/replicas", timeout_s=15)
        return [each["state"] for each in answer.body["replicas"]] if answer.ok else []


def read_passwords(secrets: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((secrets / "passwords.json").read_text())
    return found
