"""Kill and start single nodes and the broker, to see what the cluster does about it.

``kill`` is SIGKILL: nothing is flushed, nobody is told. ``start`` returns when the node serves; it does not wait for a
write quorum, which may be out of reach while others are down.
"""

import time
from collections.abc import Mapping
from typing import Any

from node.command import brokers, docker, processes
from node.command.client import NodeSilent, get
from node.command.output import CommandError, Exit, Output
from node.command.state import Cluster, Home, NodePlace
from node.command.up import POLL_S, check_ports

START_TIMEOUT_S = 30.0


def kill_node(home: Home, name: str, output: Output) -> dict[str, Any]:
    """SIGKILL one node; a node that does not run is no error."""
    with home.locked():
        node = home.load().node(name)
        pid = processes.kill(node)
    output.progress(f"{node.id}: killed (pid {pid})" if pid else f"{node.id} was not running")
    return {"node": node.id, "killed": pid is not None, "pid": pid}


def start_node(home: Home, name: str, output: Output, environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Start one node and wait until it serves; one that runs already is no error. ``environ``: what it ran with before."""
    with home.locked():
        node = home.load().node(name)
        if processes.running(node) is not None:
            output.progress(f"{node.id} is running already")
            return {"node": node.id, "started": False}
        check_ports([node])
        process = processes.start(node, environ=environ)
        with output.waiting(f"starting {node.id} …"):
            _wait_alive(node)
    output.progress(f"{node.id}: started (pid {process.pid})")
    return {"node": node.id, "started": True, "pid": process.pid}


def _wait_alive(node: NodePlace) -> None:
    give_up_at = time.monotonic() + START_TIMEOUT_S
    reason = ""
    while True:
        try:
            ready = get(node.url, "/readyz", timeout_s=3.0)
            if ready.ok:
                return
            reason = f": {ready.reason}"
        except NodeSilent:
            pass
        if processes.running(node) is None:
            lines = [line for line in processes.last_lines(node.log) if line.strip()] or ["it said nothing"]
            raise CommandError(f"{node.id} ended: {lines[-1].strip()[:300]} (log: {node.log})")
        if time.monotonic() >= give_up_at:
            raise CommandError(
                f"{node.id} does not serve after {START_TIMEOUT_S:.0f} s{reason} (log: {node.log})", Exit.UNAVAILABLE
            )
        time.sleep(POLL_S)


def kill_broker(home: Home, output: Output) -> dict[str, Any]:
    """SIGKILL the cluster's own broker."""
    with home.locked():
        cluster = home.load()
        broker = _own_broker(home, cluster)
        was_running = broker.running()
        if was_running:
            broker.kill()
    output.progress("broker: killed" if was_running else "the broker was not running")
    return {"broker": cluster.broker.kind, "killed": was_running}


def start_broker(home: Home, output: Output, image: str = docker.IMAGE) -> dict[str, Any]:
    """Start it again where the nodes look for it; returns when it serves."""
    with home.locked():
        cluster = home.load()
        broker = _own_broker(home, cluster, image)
        was_running = broker.running()
        with output.waiting("starting the broker …"):
            choice = broker.start()
        if (choice.amqp_port, choice.management_port) != (cluster.broker.amqp_port, cluster.broker.management_port):
            raise CommandError("the broker came back on other ports; restart the cluster: gitquorum down && gitquorum up")
    output.progress("the broker is running already" if was_running else f"broker: {cluster.broker.title}")
    return {"broker": cluster.broker.kind, "started": not was_running}


def _own_broker(home: Home, cluster: Cluster, image: str = docker.IMAGE) -> brokers.Broker:
    broker = brokers.broker_of(home, cluster, image)
    if not broker.ours:
        why = "uses a broker that is not ours" if cluster.broker.kind == "url" else "has no broker (direct transport)"
        raise CommandError(f"this cluster {why}; nothing to kill or start", Exit.USAGE)
    return broker
