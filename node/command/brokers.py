"""Which broker a local cluster uses, and how it is started, killed and ended.

Looked for in this order: the URL given, ``rabbitmq-server`` of this machine (run privately), a Docker engine, and else no
broker at all: the direct transport. A choice named with ``--broker`` is kept until another one is named; ``auto`` looks
again at every ``up`` of a cluster that is down. A broker that was looked for and does not start is passed over with a
warning; one that was asked for by name is an error.

With a URL, every node is given that URL: RabbitMQ refuses a message whose ``user_id`` is not the connection's user, so the
nodes share its user, and only the signature tells who sent a message. The user needs configure, write and read on its
vhost: each node declares the topology itself when it connects. Nothing else may be in that vhost, and no second cluster.
"""

import json
import secrets
from collections.abc import Iterator, Mapping
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

from broker.topology import OPERATOR, VHOST, definitions
from node.command import docker, sockets
from node.command.init import set_transport
from node.command.output import CommandError, Exit, Output
from node.command.rabbitmq import PrivateRabbitmq, RabbitmqRefused, server_script
from node.command.state import BrokerChoice, Cluster, Home, write_private_text
from node.config import Config
from node.protocol.ids import NodeId

CONTAINER_START_TIMEOUT_S = 90.0
_WAITING = {
    "local": "starting rabbitmq-server privately …",
    "docker": "starting RabbitMQ in Docker (the first time its image is pulled) …",
    "url": "looking for the broker …",
    "direct": "using no broker …",
}
KINDS = ("auto", "local", "docker", "direct")


class Broker(Protocol):
    """What the commands need of a broker, whoever runs it."""

    ours: bool
    """Whether it was started by this cluster, and may be killed by it."""

    def running(self) -> bool: ...

    def start(self) -> BrokerChoice:
        """Start it unless it runs; returns when it serves. Raises ``CommandError``."""
        ...

    def stop(self) -> None: ...

    def kill(self) -> None: ...


def check_wanted(wanted: str) -> str:
    """``--broker`` as it was typed.

    Raises:
        CommandError: USAGE.
    """
    if wanted not in KINDS and not all(map(_usable, _urls(wanted))):
        raise CommandError(f"--broker is one of {', '.join(KINDS)} or amqp://user:password@host:port/vhost", Exit.USAGE)
    return wanted


def _urls(wanted: str) -> list[str]:
    """The brokers of one RabbitMQ cluster are separated by commas."""
    return [url.strip() for url in wanted.split(",")]


def _usable(url: str) -> bool:
    parts = urlsplit(url)
    try:
        return parts.scheme in ("amqp", "amqps") and bool(parts.hostname) and (parts.port or 5672) > 0
    except ValueError:
        return False


def broker_of(home: Home, cluster: Cluster, image: str = docker.IMAGE) -> Broker:
    """The broker that ``cluster`` was configured for."""
    return _make(cluster.broker.kind, home, cluster, cluster.broker.wanted, image)


def choose(home: Home, cluster: Cluster, wanted: str, output: Output, image: str = docker.IMAGE) -> Cluster:
    """Find a broker, start it, and point every node's configuration at it. No node may be running.

    Raises:
        CommandError: if the one that was asked for by name cannot be had.
    """
    for kind in _candidates(wanted):
        try:
            with output.waiting(_WAITING[kind]):
                choice = _make(kind, home, cluster, wanted, image).start()
        except CommandError as error:
            if wanted != "auto":
                raise
            output.warning(f"{error}; looking for another broker")
            continue
        configure(home, cluster, choice)
        return home.save_broker(cluster, choice)
    raise CommandError("no broker can be had")


def _candidates(wanted: str) -> Iterator[str]:
    """In the order in which they are tried; each is looked for only when those before it did not do."""
    if wanted != "auto":
        yield wanted if wanted in KINDS else "url"
        return
    if server_script() is not None:
        yield "local"
    if docker.engine():
        yield "docker"
    yield "direct"


def configure(home: Home, cluster: Cluster, choice: BrokerChoice) -> None:
    """Write each node's way to the broker into its configuration."""
    if choice.kind == "url" and urlsplit(choice.wanted).username in {node.id for node in cluster.nodes}:
        # A node that connects under its own name takes every user_id for a sender's name, and would refuse its peers.
        raise CommandError("the nodes share the URL's user: it must not bear the name of one of them", Exit.USAGE)
    words = passwords(home, cluster) if choice.kind in ("local", "docker") else {}
    for node in cluster.nodes:
        url: str | None = None
        if choice.kind == "url":
            url = choice.wanted
        elif words:
            url = f"amqp://{quote(node.id, safe='')}:{words[node.id]}@127.0.0.1:{choice.amqp_port}/{quote(VHOST, safe='')}"
        set_transport(node.config, url)


def passwords(home: Home, cluster: Cluster) -> dict[str, str]:
    """One password per broker user, a user per node and the operator's; made once."""
    file = home.passwords
    try:
        known: dict[str, str] = json.loads(file.read_text())
    except FileNotFoundError:
        known = {}
    missing = [name for name in (*(node.id for node in cluster.nodes), OPERATOR) if name not in known]
    if missing:
        known |= {name: secrets.token_urlsafe(24) for name in missing}
        write_private_text(file, json.dumps(known, indent=2) + "\n")
    return known


def _definitions(home: Home, cluster: Cluster) -> Mapping[str, Any]:
    words = passwords(home, cluster)
    members = [NodeId(node.id) for node in cluster.nodes]
    config = Config.from_file(cluster.nodes[0].config)
    return definitions(members, words, config.inspect_length, queue_type=config.queue_type)


def _make(kind: str, home: Home, cluster: Cluster, wanted: str, image: str) -> Broker:
    match kind:
        case "local":
            return _Local(home, cluster, wanted)
        case "docker":
            return _Docker(home, cluster, wanted, image)
        case "url":
            return _Given(wanted)
        case _:
            return _Direct(wanted)


class _Local:
    """The machine's own rabbitmq-server, run from ``.gitquorum/broker``."""

    ours = True

    def __init__(self, home: Home, cluster: Cluster, wanted: str) -> None:
        self._home, self._cluster, self._wanted = home, cluster, wanted
        self._server = PrivateRabbitmq(home.broker_folder)

    def running(self) -> bool:
        return self._server.endpoints() is not None

    def start(self) -> BrokerChoice:
        try:
            at = self._server.start(_definitions(self._home, self._cluster))
        except RabbitmqRefused as error:
            raise CommandError(str(error)) from error
        return BrokerChoice("local", self._wanted, at.amqp_port, at.management_port)

    def stop(self) -> None:
        self._server.stop()

    def kill(self) -> None:
        self._server.kill()


class _Docker:
    """A container; ports are chosen when it is made and kept."""

    ours = True

    def __init__(self, home: Home, cluster: Cluster, wanted: str, image: str) -> None:
        self._home, self._cluster, self._wanted = home, cluster, wanted
        self._container = docker.Container(home.broker_folder, image)

    def running(self) -> bool:
        return self._container.running()

    def start(self) -> BrokerChoice:
        known = self._cluster.broker
        if known.kind == "docker" and self._container.exists():
            self._container.start()
            choice = known
        else:
            if not docker.engine():
                raise CommandError("no Docker engine answers; start it, or use --broker local or --broker direct")
            amqp, management = sockets.free_ports(2)
            self._container.create(_definitions(self._home, self._cluster), amqp, management)
            choice = BrokerChoice("docker", self._wanted, amqp, management, container=self._container.name)
        if not sockets.wait_for(lambda: sockets.speaks_amqp("127.0.0.1", choice.amqp_port), CONTAINER_START_TIMEOUT_S):
            raise CommandError(f"RabbitMQ did not start in its container; look at: docker logs {self._container.name}")
        return choice

    def stop(self) -> None:
        self._container.remove()

    def kill(self) -> None:
        self._container.kill()


class _Given:
    """Somebody else's broker, or several of one RabbitMQ cluster: only looked at. One that answers is enough."""

    ours = False

    def __init__(self, url: str) -> None:
        self._url = url
        self._places = [_place(each) for each in _urls(url)]

    def running(self) -> bool:
        return any(_answers(*place) for place in self._places)

    def start(self) -> BrokerChoice:
        if not self.running():
            where = " or ".join(f"{host}:{port}" for host, port, _ in self._places)
            raise CommandError(f"no AMQP broker answers at {where}; start it, or leave --broker out", Exit.UNAVAILABLE)
        host, port, _ = self._places[0]
        return BrokerChoice("url", self._url, port, host=host)

    def stop(self) -> None:
        """Not ours."""

    def kill(self) -> None:
        """Not ours."""


class _Direct:
    """No broker: nothing to run."""

    ours = False

    def __init__(self, wanted: str) -> None:
        self._wanted = wanted

    def running(self) -> bool:
        return True

    def start(self) -> BrokerChoice:
        return BrokerChoice("direct", self._wanted)

    def stop(self) -> None:
        """Nothing there."""

    def kill(self) -> None:
        """Nothing there."""


def _place(url: str) -> tuple[str, int, bool]:
    """Host, port, and whether it is TLS."""
    parts = urlsplit(url)
    tls = parts.scheme == "amqps"
    return parts.hostname or "", parts.port or (5671 if tls else 5672), tls


def _answers(host: str, port: int, tls: bool) -> bool:
    return sockets.connects(host, port) if tls else sockets.speaks_amqp(host, port, 3.0)
