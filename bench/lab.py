"""A cluster of three for measuring: started and ended here, nodes and broker killed by process id, pushes made by hand.

Everything is in a temporary folder and on free loopback ports; leaving the context ends every process. The figures of
``docs/testing.md`` are printed by the other modules of this folder, each by ``.venv/bin/python -m bench.NAME [--json]``.
"""

import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from node.command import brokers, docker, processes
from node.command.client import LOCAL, NodeSilent, request
from node.command.down import down
from node.command.drill_doubts import History
from node.command.drill_push import Client, Fate, Pushed
from node.command.drill_targets import Target
from node.command.output import Output
from node.command.sockets import is_free
from node.command.state import Cluster, Home, NodePlace
from node.command.up import Wish, up, why_not_ready

DEADLINE_S = 2.0
"""``Config.prepare_timeout_s``, which is left as it is."""

PUSH_TIMEOUT_S = 10.0


class Lab:
    """Three nodes, numbered from 1."""

    def __init__(self, home: Home, cluster: Cluster) -> None:
        self.home = home
        self.cluster = cluster
        self.nodes = cluster.nodes

    def node(self, number: int) -> NodePlace:
        return self.nodes[number - 1]

    def create(self, name: str) -> str:
        answer = request(self.node(1).url, "POST", "/repos", body={"repo_id": name})
        assert answer.status == 201, answer
        return name

    def client(self, number: int, repository: str, timeout_s: float = PUSH_TIMEOUT_S) -> Client:
        return Client(self.node(number).id, self.node(number).url, repository, timeout_s)

    def target(self, number: int) -> Target:
        return Target(self.node(number).id, self.node(number).url)

    def lost(self, number: int, repository: str, pushed: Iterable[Pushed]) -> int:
        """How many acknowledged pushes this node's own history does not hold, once it has answered a strong read.

        A push is acknowledged when a quorum holds it, so this node may be a moment behind; after a strong read it may not."""
        answer = request(self.node(number).url, "GET", f"/repos/{repository}")
        assert answer.ok, answer
        history = History(self.target(number), repository)
        assert history.read(), f"node-{number} does not tell its history"
        return len({each.new for each in pushed if each.fate is Fate.ACKNOWLEDGED} - history.oids)

    def local(self, number: int, path: str) -> dict[str, Any]:
        """What this node knows by itself; empty while it does not answer."""
        with suppress(NodeSilent):
            answer = request(self.node(number).url, "GET", path, headers=LOCAL, timeout_s=5)
            return answer.body if answer.ok else {}
        return {}

    def kill(self, number: int) -> float:
        """SIGKILL; returns the moment."""
        process = processes.running(self.node(number))
        assert process is not None
        at = time.monotonic()
        process.kill()
        processes.wait_gone([process], 10)
        return at

    def start(self, number: int, fault: str = "") -> float:
        """Start it, armed if asked for; returns the moment, at once."""
        before = os.environ.pop("GITQUORUM_FAULT_POINTS", None)
        try:
            if fault:
                os.environ["GITQUORUM_FAULT_POINTS"] = json.dumps([fault])
            at = time.monotonic()
            processes.start(self.node(number))
        finally:
            os.environ.pop("GITQUORUM_FAULT_POINTS", None)
            if before is not None:
                os.environ["GITQUORUM_FAULT_POINTS"] = before
        return at

    def signal(self, number: int, what: signal.Signals) -> float:
        process = processes.running(self.node(number))
        assert process is not None
        at = time.monotonic()
        process.send_signal(what)
        return at

    def fired(self, number: int) -> int:
        """How many faults this node's log tells of."""
        return self.node(number).log.read_text(errors="replace").count(" fired\n")

    def alive(self, number: int) -> bool:
        return processes.running(self.node(number)) is not None

    def wait_well(self, timeout_s: float = 60.0) -> None:
        """Every node has a write quorum and every peer in reach."""
        wait(self._well, timeout_s, "the cluster is well", 0.2)

    def _well(self) -> bool:
        for number, node in enumerate(self.nodes, start=1):
            peers = self.local(number, "/health").get("peers", [])
            if why_not_ready(node) or len(peers) != len(self.nodes) - 1 or any(peer["state"] != "alive" for peer in peers):
                return False
        return True

    @property
    def broker(self) -> brokers.Broker:
        return brokers.broker_of(self.home, self.cluster)


@contextmanager
def lab(broker: str = "direct", nodes: int = 3, image: str = docker.IMAGE) -> Iterator[Lab]:
    """A fresh cluster; ended and removed afterwards. ``image`` is RabbitMQ's, where the broker runs in Docker."""
    with tempfile.TemporaryDirectory(prefix="gitquorum-lab-") as folder:
        home, output = Home(Path(folder) / "state"), Output(as_json=True)
        first = random.randrange(20_001, 30_000, 10)  # two of these may start side by side
        base = next(port for port in range(first, 32_000, 10) if all(is_free(port + number) for number in range(nodes)))
        try:
            up(home, Wish(nodes, base, broker, image), output)
            made = Lab(home, home.load())
            made.wait_well()
            yield made
        finally:
            for node in home.load().nodes if home.exists else ():
                if (process := processes.running(node)) is not None:
                    process.send_signal(signal.SIGCONT)
            down(home, output, purge=True)


def wait(condition: Callable[[], object], timeout_s: float, what: str, pause_s: float = 0.05) -> float:
    """Until it is true; returns the moment. Raises ``AssertionError``."""
    give_up_at = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up_at, f"not within {timeout_s:g} s: {what}"
        time.sleep(pause_s)
    return time.monotonic()


def spread(values: Sequence[float]) -> dict[str, float]:
    """Least, median, 99th percentile (nearest rank), greatest."""
    ordered = sorted(values)
    rank = max(0, -(-99 * len(ordered) // 100) - 1)
    named = {"min": ordered[0], "p50": statistics.median(ordered), "p99": ordered[rank], "max": ordered[-1]}
    return {name: round(value, 3) for name, value in named.items()}


def machine() -> dict[str, object]:
    """What a figure depends on."""
    return {"cores": os.cpu_count(), "load_average": [round(load, 2) for load in os.getloadavg()]}


def tell(result: dict[str, object], as_json: bool, sentence: str) -> None:
    sys.stdout.write(json.dumps(result, indent=2) + "\n" if as_json else sentence + "\n")
    sys.stdout.flush()
