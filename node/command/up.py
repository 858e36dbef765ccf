"""Bring the local cluster up and wait until every node can write: init if needed, a broker, the nodes.

It may be called again at any time: on a cluster that is up it says so, on one that is half up it starts what is missing.
It never ends anything. Order matters: the broker first, so that the nodes' first connection succeeds; then the ports of
*all* missing nodes are checked before the first of them is started, so that a conflict leaves nothing half done.
"""

import time
from dataclasses import dataclass
from typing import Any

from broker.topology import OPERATOR
from node.command import brokers, docker, processes, sockets
from node.command.client import NodeSilent, at_once, get
from node.command.init import PORT, init
from node.command.output import CommandError, Exit, Output
from node.command.state import Cluster, Home, NodePlace

READY_TIMEOUT_S = 60.0
POLL_S = 0.1
OTHER_PORTS = "gitquorum up --base-port 3101"


@dataclass(frozen=True, slots=True)
class Wish:
    """What the command line asked for; ``None``: nothing in particular."""

    nodes: int | None = None
    base_port: int | None = None
    broker: str | None = None
    image: str = docker.IMAGE


def up(home: Home, wish: Wish, output: Output, ready_timeout_s: float = READY_TIMEOUT_S) -> dict[str, Any]:
    """See the module; returns what ``--json`` prints.

    Raises:
        CommandError: with the port and process in the way, the last words of a node that did not start, …
    """
    wanted = brokers.check_wanted(wish.broker) if wish.broker is not None else None
    with home.locked(make=True):
        fresh = not home.exists
        cluster = _find_or_make(home, wish, output)
        started: list[str] = []
        if fresh or not _is_up(home, cluster, wanted, wish.image):
            cluster, started = _start_missing(home, cluster, wanted, wish.image, output, ready_timeout_s)
    if not started:
        output.progress(f"already up: {len(cluster.nodes)} nodes, {cluster.broker.title}")
    return {
        "already_up": not started,
        "started": started,
        "broker": {
            "kind": cluster.broker.kind,
            "title": cluster.broker.title,
            "management_url": cluster.broker.management_url,
            "passwords": str(home.passwords) if cluster.broker.management_url else None,
        },
        "nodes": [{"id": node.id, "url": node.url, "log": str(node.log)} for node in cluster.nodes],
        "directory": str(home.folder),
    }


def _find_or_make(home: Home, wish: Wish, output: Output) -> Cluster:
    if not home.exists:
        nodes, base_port = wish.nodes or 3, wish.base_port or PORT
        check_ports([home.place(f"node-{number + 1}", base_port + number) for number in range(nodes)], OTHER_PORTS)
        cluster = init(home, nodes=nodes, base_port=base_port)
        output.progress(f"made {home.folder}: {nodes} nodes, ports {base_port} to {base_port + nodes - 1}")
        return cluster
    cluster = home.load()
    if wish.nodes not in (None, len(cluster.nodes)) or wish.base_port not in (None, cluster.nodes[0].port):
        raise CommandError(
            f"the cluster in {home.folder} has {len(cluster.nodes)} nodes from port {cluster.nodes[0].port} on; "
            "replace it with: gitquorum down --purge, then gitquorum up",
            Exit.USAGE,
        )
    return cluster


def _is_up(home: Home, cluster: Cluster, wanted: str | None, image: str) -> bool:
    """Everything runs and is ready.

    Raises:
        CommandError: USAGE if it runs with another broker than is asked for now.
    """
    running = [processes.running(node) is not None for node in cluster.nodes]
    if any(running) and wanted not in (None, "auto", cluster.broker.wanted, cluster.broker.kind):
        raise CommandError(
            f"the cluster runs with {cluster.broker.title}; to change its broker: gitquorum down, then "
            f"gitquorum up --broker {wanted}",
            Exit.USAGE,
        )
    return (
        all(running)
        and brokers.broker_of(home, cluster, image).running()
        and all(reason is None for reason in at_once(why_not_ready, cluster.nodes))
    )


def _start_missing(
    home: Home, cluster: Cluster, wanted: str | None, image: str, output: Output, ready_timeout_s: float
) -> tuple[Cluster, list[str]]:
    """Returns the cluster as it is now, and what was started."""
    started = []
    missing = [node for node in cluster.nodes if processes.running(node) is None]
    check_ports(missing)
    broker = brokers.broker_of(home, cluster, image)
    if len(missing) < len(cluster.nodes):
        if not broker.running():
            with output.waiting("starting the broker again …"):
                broker.start()
            started.append("broker")
    else:
        before = cluster.broker
        cluster = brokers.choose(home, cluster, wanted or cluster.broker.wanted, output, image)
        if broker.ours and before.kind != cluster.broker.kind:
            broker.stop()
        if cluster.broker.kind in ("local", "docker"):
            started.append("broker")
    output.progress(f"broker: {cluster.broker.title}")
    for node in missing:
        processes.start(node)
        started.append(node.id)
    began = time.monotonic()
    with output.waiting(f"starting {', '.join(node.id for node in missing) or 'nothing'}, waiting for a write quorum …"):
        wait_ready(cluster.nodes, ready_timeout_s)
    output.progress(f"{len(cluster.nodes)} nodes ready to write after {time.monotonic() - began:.1f} s")
    return cluster, started


def check_ports(nodes: list[NodePlace], or_else: str = "") -> None:
    """Raises ``CommandError`` that names who to stop, before anything is made or started.

    ``or_else`` is another way out, for a cluster that has no repositories yet: one that has keeps its ports.
    """
    for node in nodes:
        if not sockets.is_free(node.port):
            way_out = f"; or use other ports: {or_else}" if or_else else ""
            raise CommandError(f"{node.id} cannot start: {sockets.who_holds(node.port)}{way_out}")


def wait_ready(nodes: tuple[NodePlace, ...], timeout_s: float) -> None:
    """Until all of ``nodes`` have a write quorum in reach.

    Raises:
        CommandError: FAILED with the last words of a node that ended; UNAVAILABLE if it takes too long.
    """
    give_up_at = time.monotonic() + timeout_s
    waiting = {node.id: node for node in nodes}
    reasons: dict[str, str] = {}
    while waiting:
        asked = list(waiting.values())
        for node, reason in zip(asked, at_once(why_not_ready, asked), strict=True):
            if reason is None:
                del waiting[node.id]
                continue
            reasons[node.id] = reason
            if processes.running(node) is None:
                raise CommandError(f"{node.id} ended: {_last_words(node)} (log: {node.log})")
        if waiting and time.monotonic() >= give_up_at:
            told = "; ".join(f"{name}: {reasons[name]}" for name in waiting)
            raise CommandError(f"not ready after {timeout_s:.0f} s: {told}; look at: gitquorum status", Exit.UNAVAILABLE)
        if waiting:
            time.sleep(POLL_S)


def why_not_ready(node: NodePlace) -> str | None:
    """``None`` when the node can write."""
    try:
        answer = get(node.url, "/readyz?role=write", timeout_s=3.0)
    except NodeSilent as error:
        return str(error)
    return None if answer.ok else answer.reason


def _last_words(node: NodePlace) -> str:
    lines = [line.strip() for line in processes.last_lines(node.log) if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def next_steps(result: dict[str, Any], program: str) -> str:
    """What a newcomer may type now."""
    urls = [node["url"] for node in result["nodes"]]
    last = result["nodes"][-1]["id"]
    lines = [
        "What to do next (any node takes any request):",
        f"  {program} repo create alice/project",
        f"  git clone {urls[0]}/alice/project.git",
        f"  {program} status            nodes, broker, versions on every node",
        f"  {program} kill {last}       pushes go on without it; bring it back with: {program} start {last}",
        f"  {program} down              stop everything; repositories stay",
        f"  {urls[0]}/openapi.json        the REST API",
    ]
    management = result["broker"]["management_url"]
    if management:
        lines.append(f"  {management}        RabbitMQ; user {OPERATOR}, password in {result['broker']['passwords']}")
    return "\n".join(lines)
