"""Brokers for bare transports, one class a source: loaded with the real definitions, and with an administrator.

``DockerBroker`` is testcontainers' RabbitMQ, on loopback ports that it keeps, so that one that was killed (``docker kill``)
comes back (``docker start``) where its clients look for it. ``given_broker.py`` has the one for a URL.
"""

import gc
import json
import time
import warnings
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any
from urllib.parse import quote

from broker.topology import OPERATOR, VHOST, QueueType, definitions, inbox, replies
from node.command.docker import _CONF
from node.command.rabbitmq import PrivateRabbitmq
from node.command.sockets import free_ports, speaks_amqp
from node.protocol.ids import NodeId
from tests.cluster.management import Management, word

ONE, TWO, THREE, GHOST = (NodeId(name) for name in ("node-1", "node.2", "node-3", "ghost"))
MEMBERS = (ONE, TWO, THREE, GHOST)
"""The ghost is a member that was never started: nothing listens, and it has no queues. ``node.2`` has a dot in its id."""
ADMIN = "gitquorum-test-admin"
PASSWORDS = {**{str(node): f"password of {node}" for node in MEMBERS}, OPERATOR: "look", ADMIN: "admin"}
START_TIMEOUT_S = 60.0


def broker_definitions(queue_type: QueueType = "classic") -> dict[str, Any]:
    """The real ones, without the ghost's queues, and with an administrator who cleans up between tests."""
    data = definitions(MEMBERS, PASSWORDS, 1000, queue_type=queue_type)
    ghostly = {inbox(GHOST), replies(GHOST)}
    data["queues"] = [queue for queue in data["queues"] if queue["name"] not in ghostly]
    data["bindings"] = [
        binding
        for binding in data["bindings"]
        if binding["destination"] not in ghostly and not binding["routing_key"].startswith("*.ghost.")
    ]
    (admin,) = definitions([NodeId(ADMIN)], {ADMIN: PASSWORDS[ADMIN]}, 0)["users"]
    data["users"].append({**admin, "tags": ["administrator"], "limits": {}})
    data["permissions"].append({"user": ADMIN, "vhost": VHOST, "configure": ".*", "write": ".*", "read": ".*"})
    return data


class Broker(ABC):
    """One that runs, with ``broker_definitions`` in its vhost ``gitquorum``."""

    def __init__(self, host: str, amqp_port: int, management_url: str) -> None:
        self.host = host
        self.amqp_port = amqp_port
        self.management_url = management_url

    @abstractmethod
    def close(self) -> None:
        """End it, and leave nothing."""

    def kill(self) -> None:
        """SIGKILL."""
        raise NotImplementedError(f"{self!r} is not ours to kill")

    def start(self) -> None:
        """What was killed, where it was, with the data it had."""
        raise NotImplementedError(f"{self!r} is not ours to start")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.host}:{self.amqp_port}>"

    @property
    def version(self) -> str:
        return str(self.api("overview")["rabbitmq_version"])

    def url(self, user: str) -> str:
        return f"amqp://{quote(user)}:{quote(PASSWORDS[user])}@{self.host}:{self.amqp_port}/{VHOST}"

    def management(self, user: str = ADMIN) -> Management:
        return Management(self.management_url, user, PASSWORDS[user])

    def api(self, path: str, *, user: str = ADMIN, method: str = "GET", body: Any = None) -> Any:
        return self.management(user).api(path, method, body)

    def look(self, queue: str, count: int = 1000, user: str = OPERATOR) -> list[dict[str, Any]]:
        """What lies in a queue, which keeps it."""
        body = {"count": count, "ackmode": "ack_requeue_true", "encoding": "auto"}
        found: list[dict[str, Any]] = self.api(f"queues/{VHOST}/{queue}/get", user=user, method="POST", body=body)
        return found

    def purge(self, queue_type: QueueType = "classic") -> None:
        """As ``broker_definitions`` say, and empty, whatever a test did."""
        wanted = broker_definitions(queue_type)
        arguments = {queue["name"]: queue["arguments"] for queue in wanted["queues"]}
        for queue in self.api(f"queues/{VHOST}?columns=name,arguments"):
            if queue["arguments"] != arguments.get(queue["name"]):
                self.api(f"queues/{VHOST}/{word(queue['name'])}", method="DELETE")
        self.load(wanted)
        for name in arguments:
            self.api(f"queues/{VHOST}/{word(name)}/contents", method="DELETE")

    def load(self, data: dict[str, Any]) -> None:
        self.api("definitions", method="POST", body=data)

    def await_ready(self) -> None:
        """AMQP and the management UI answer."""
        give_up_at = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                if speaks_amqp(self.host, self.amqp_port, 1.0) and self.version:
                    return
            except OSError as error:  # not there yet, or (HTTPError) not with its users yet
                last: object = error
            else:
                last = "no AMQP"
            assert time.monotonic() < give_up_at, f"{self!r} did not serve within {START_TIMEOUT_S:g} s: {last}"
            time.sleep(0.1)


class LocalBroker(Broker):
    """The machine's rabbitmq-server, private in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._server = PrivateRabbitmq(folder)
        at = self._server.start(broker_definitions())
        super().__init__("127.0.0.1", at.amqp_port, f"http://127.0.0.1:{at.management_port}")

    def kill(self) -> None:
        self._server.kill()

    def start(self) -> None:
        at = self._server.start(broker_definitions())
        assert at.amqp_port == self.amqp_port

    def close(self) -> None:
        self._server.kill()
        assert self._server.endpoints() is None


class DockerBroker(Broker):
    """testcontainers' RabbitMQ."""

    def __init__(self, folder: Path, image: str) -> None:
        amqp, management = free_ports(2)
        super().__init__("127.0.0.1", amqp, f"http://127.0.0.1:{management}")
        self.container = _container(folder, image, amqp, management)
        try:
            with warnings.catch_warnings():
                # testcontainers asks until the broker answers; pika leaves the sockets of those attempts to the collector.
                warnings.simplefilter("ignore", ResourceWarning)
                self.container.start()
                gc.collect()
            self.await_ready()
        except BaseException:
            self.container.stop()
            raise

    def kill(self) -> None:
        self.container.get_wrapped_container().kill()

    def start(self) -> None:
        self.container.get_wrapped_container().start()
        self.await_ready()

    def close(self) -> None:
        self.container.stop()


def _container(folder: Path, image: str, amqp_port: int, management_port: int) -> Any:
    """Not started. It logs in as the administrator to see whether it is ready; there is no guest."""
    with warnings.catch_warnings():
        # testcontainers' own module still uses a decorator that testcontainers deprecates.
        warnings.filterwarnings("ignore", r"The @wait_container_is_ready decorator is deprecated", DeprecationWarning)
        from testcontainers.community.rabbitmq import RabbitMqContainer
    from testcontainers.core.config import ConnectionMode, testcontainers_config

    # Its reaper is one more image to pull; the fixtures end what they started, also after a failure.
    testcontainers_config.ryuk_disabled = True
    # In a container itself it would look at the bridge's gateway; the ports are on this loopback address alone.
    testcontainers_config.connection_mode_override = ConnectionMode.docker_host
    testcontainers_config.tc_host_override = "127.0.0.1"
    testcontainers_config.sleep_time = 0.2
    testcontainers_config.max_tries = int(START_TIMEOUT_S / 0.2)
    (folder / "gitquorum.json").write_text(json.dumps(broker_definitions()))
    (folder / "90-gitquorum.conf").write_text(_CONF)
    made: Any = RabbitMqContainer(image, username=ADMIN, password=PASSWORDS[ADMIN], vhost=VHOST)
    # testcontainers' own words for this would listen on all addresses; docker-py takes an address, too.
    made.ports = {"5672/tcp": ("127.0.0.1", amqp_port), "15672/tcp": ("127.0.0.1", management_port)}
    made.with_kwargs(labels={"org.gitquorum.tests": "transport"})
    made.with_copy_into_container(folder / "gitquorum.json", "/etc/rabbitmq/gitquorum.json", 0o644)
    made.with_copy_into_container(folder / "90-gitquorum.conf", "/etc/rabbitmq/conf.d/90-gitquorum.conf", 0o644)
    return made
