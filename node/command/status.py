"""What the cluster looks like now: every node's process and health, the broker, every repository's version on every node.

Nodes are asked side by side, each with its own time limit, so that a hanging one delays the answer by that and no more.
The repositories are asked of the first node that answers; it asks the others (``GET …/replicas``). All of it is ``local``
reading: the state of a cluster must be visible when it has no majority.
"""

from typing import Any

from rich.console import Group

from broker.topology import OPERATOR
from node.command import brokers, processes
from node.command.client import NodeSilent, at_once, get
from node.command.output import Output, table
from node.command.repos import list_repos
from node.command.state import Cluster, Home, NodePlace

ASK_TIMEOUT_S = 3.0
REPOSITORIES_MAX = 50


def status(home: Home, output: Output, *, repositories_max: int = REPOSITORIES_MAX) -> dict[str, Any]:
    """Print and return the state; a cluster that is down is a state, not an error."""
    cluster = home.load()
    nodes = at_once(node_status, cluster.nodes)
    broker = broker_status(home, cluster)
    repositories, more = _repositories([node["url"] for node in nodes if node["serving"]], repositories_max)
    state = {
        "cluster": cluster.name,
        "directory": str(home.folder),
        "ready": all(node["ready"] for node in nodes),
        "nodes": nodes,
        "broker": broker,
        "repositories": repositories,
        "more_repositories": more,
    }
    output.result(state, None if output.as_json else _human(state))
    return state


def node_status(node: NodePlace) -> dict[str, Any]:
    """Process, readiness, and what the node says of itself."""
    process = processes.running(node)
    state: dict[str, Any] = {
        "id": node.id,
        "url": node.url,
        "pid": process.pid if process else None,
        "running": process is not None,
        "serving": False,
        "ready": False,
        "reason": None,
        "health": None,
    }
    if process is None:
        return {**state, "reason": f"not running; start it with: gitquorum start {node.id}"}
    try:
        ready = get(node.url, "/readyz?role=write", ASK_TIMEOUT_S)
        health = get(node.url, "/health", ASK_TIMEOUT_S)
    except NodeSilent as error:
        return {**state, "reason": str(error)}
    return {
        **state,
        "serving": True,
        "ready": ready.ok,
        "reason": (health.body.get("problem") or None) if ready.ok else ready.reason,
        "health": health.body or None,
    }


def broker_status(home: Home, cluster: Cluster) -> dict[str, Any]:
    """The broker as the command sees it; what each node thinks of it is in the node's health."""
    choice = cluster.broker
    running = brokers.broker_of(home, cluster).running() if choice.kind != "direct" else None
    return {
        "kind": choice.kind,
        "title": choice.title,
        "running": running,
        "amqp_port": choice.amqp_port or None,
        "management_url": choice.management_url,
        "management_user": OPERATOR if choice.management_url else None,
        "passwords": str(home.passwords) if choice.management_url else None,
    }


def _repositories(urls: list[str], count_max: int) -> tuple[list[dict[str, Any]], bool]:
    """(each with its version on every node, whether there are more). The lists may differ while a node catches up."""
    if not urls:
        return [], False
    try:
        found, more = list_repos(urls[0], count_max)
        asked = at_once(lambda repo: get(urls[0], f"/repos/{repo['repo_id']}/replicas", local=True), found)
    except NodeSilent:
        return [], True
    return [
        {**repo, "replicas": answer.body.get("replicas", []) if answer.ok else []}
        for repo, answer in zip(found, asked, strict=True)
    ], more


def _human(state: dict[str, Any]) -> Group:
    nodes = [
        (node["id"], node["url"], node["pid"], "ready" if node["ready"] else _word(node), node["reason"])
        for node in state["nodes"]
    ]
    parts: list[Any] = [table(("node", "url", "pid", "state", "why not"), nodes), ""]
    broker = state["broker"]
    down = "" if broker["running"] in (None, True) else "  NOT RUNNING"
    parts.append(f"broker: {broker['title']}{down}")
    if broker["management_url"]:
        parts.append(f"management: {broker['management_url']}  user {OPERATOR}, password in {broker['passwords']}")
    if state["repositories"]:
        names = [node["id"] for node in state["nodes"]]
        parts += ["", table(("repository", *names), [_replica_row(repo, names) for repo in state["repositories"]])]
    if state["more_repositories"]:
        parts.append("… and more: gitquorum repo list")
    return Group(*parts)


def _word(node: dict[str, Any]) -> str:
    if not node["running"]:
        return "down"
    return "not ready to write" if node["serving"] else "silent"


def _replica_row(repo: dict[str, Any], names: list[str]) -> list[str]:
    by_node = {replica["node_id"]: replica for replica in repo["replicas"]}
    cells = [str(repo["repo_id"])]
    for name in names:
        replica = by_node.get(name)
        version = replica.get("version") if replica else None
        state = replica.get("state", "") if replica else "?"
        cells.append(f"v{version} {state}" if version is not None else str(state))
    return cells
