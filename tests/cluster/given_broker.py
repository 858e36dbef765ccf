"""A broker that was given by URL: somebody else's, and left as it was found.

``GivenBroker`` makes the vhost ``gitquorum`` and the nodes' users there, refuses if there are any that no test made, and takes
them away again. ``GivenVhost`` is the place of a whole cluster, whose nodes share the URL's user.
"""

from contextlib import closing
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit

import pika
from pika.exceptions import ChannelClosedByBroker

from broker.topology import EXCHANGE, INSPECT_QUEUE, OPERATOR, VHOST, whole
from node.protocol.ids import NodeId
from tests.cluster.brokers import ADMIN, MEMBERS, Broker, broker_definitions
from tests.cluster.management import Management, word
from tests.cluster.sources import Source, SourceRefused

MADE_BY_TESTS = "made by the tests of gitquorum; may be deleted"


class GivenBroker(Broker):
    """A vhost and users on a broker that was given by URL, as its administrator."""

    def __init__(self, source: Source) -> None:
        assert source.management is not None
        self._master = source.management
        parts = urlsplit(source.url)
        super().__init__(parts.hostname or "", parts.port or 5672, source.management.url)
        if not is_ours(self._master, VHOST):
            names = (*map(str, MEMBERS), OPERATOR, ADMIN)
            foreign = [name for name in names if self._master.exists(f"users/{word(name)}")]
            if foreign:
                raise SourceRefused(f"{self._master.url} has users {foreign} that no test made: it is no broker for tests")
        make_vhost(self._master, VHOST)
        self.load(broker_definitions())

    def load(self, data: dict[str, Any]) -> None:
        # The vhost is there, and keeps the description that says whose it is.
        self._master.api("definitions", "POST", {name: value for name, value in data.items() if name != "vhosts"})

    def close(self) -> None:
        for name in (*map(str, MEMBERS), OPERATOR, ADMIN):
            self._master.api(f"users/{word(name)}", "DELETE")
        drop_vhost(self._master, VHOST)


class GivenVhost:
    """Where a whole cluster is on a broker that was given by URL: in a vhost of its own if the URL's user may make one, else in
    the URL's, which must be empty of ours and is so again afterwards."""

    NAME = "gitquorum-test-cluster"

    def __init__(self, source: Source) -> None:
        self.url = source.url
        self._master = source.management
        if self._master is not None:
            make_vhost(self._master, self.NAME)
            self.url = source.url.removesuffix(urlsplit(source.url).path) + f"/{self.NAME}"
        elif self._ours():
            raise SourceRefused(f"{source.title} has queues named gitquorum already: it is no broker for tests")

    def close(self) -> None:
        if self._master is not None:
            drop_vhost(self._master, self.NAME)
            return
        members = [NodeId(f"node-{number}") for number in (1, 2, 3)]
        topology = whole(members, 1)
        with closing(pika.BlockingConnection(pika.URLParameters(self.url))) as connection:
            channel = connection.channel()
            for queue in (*(queue.name for queue in topology.queues), INSPECT_QUEUE):
                channel.queue_delete(queue)
            for exchange in topology.exchanges:
                channel.exchange_delete(exchange.name)

    def _ours(self) -> bool:
        """Whether a cluster uses this vhost, or did."""
        with closing(pika.BlockingConnection(pika.URLParameters(self.url))) as connection:
            try:
                connection.channel().exchange_declare(EXCHANGE, passive=True)
            except ChannelClosedByBroker as closed:
                if closed.reply_code != 404:
                    raise
                return False
        return True


def make_vhost(master: Management, name: str) -> None:
    """An empty one; one that an earlier run left is made again.

    Raises:
        SourceRefused: there is one that no test made.
    """
    if is_ours(master, name):
        drop_vhost(master, name)
    elif master.exists(f"vhosts/{word(name)}"):
        raise SourceRefused(f"{master.url} has a vhost {name!r} that no test made: it is no broker for tests")
    master.api(f"vhosts/{word(name)}", "PUT", {"description": MADE_BY_TESTS, "tags": "gitquorum-tests"})
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    master.api(f"permissions/{word(name)}/{word(master.user)}", "PUT", everything)


def is_ours(master: Management, name: str) -> bool:
    """Whether there is a vhost of this name that a run of the tests made."""
    path = f"vhosts/{word(name)}"
    return master.exists(path) and master.api(path).get("description") == MADE_BY_TESTS


def drop_vhost(master: Management, name: str) -> None:
    try:
        master.api(f"vhosts/{word(name)}", "DELETE")
    except HTTPError as error:
        if error.code != 404:
            raise
