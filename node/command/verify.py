"""``gitquorum verify``: every node looks at everything it stores, or at one repository, now; then the replicas are compared.

A node repairs what it finds by itself; this command tells what there was. Exit code 0: nothing was found and all replicas
agree; 1: something was found (repaired or not), or they do not.
"""

import time
from typing import Any
from urllib.parse import quote

from rich.console import Group

from node.command.client import NodeSilent, at_once, get, refuse, request
from node.command.output import CommandError, Exit, Output, table
from node.command.repos import list_repos
from node.command.state import Home, NodePlace
from node.protocol.names import BadRepositoryName, RepositoryName

POLL_S = 0.2
SHOWN_S = 5.0
"""Between two lines of progress."""
REPOSITORIES_MAX = 10_000


def verify(home: Home, name: str | None, output: Output) -> dict[str, Any]:
    """Raises ``CommandError`` (FAILED) after the result if anything was found."""
    path = "/scrub" if name is None else f"/scrub/{quote(str(parse(name)))}"
    nodes = at_once(lambda node: _scrub(node, path, output), home.load().nodes)
    alive = [node for node in nodes if not node["problem"]]
    if not alive:
        raise CommandError("no node answers; start the cluster with: gitquorum up", Exit.UNAVAILABLE)
    replicas = _compare(alive[0]["url"], name)
    found = sum(len(node["reports"]) for node in nodes)
    silent = [node["id"] for node in nodes if node["problem"]]
    clean = not found and not silent and not any(node["skipped"] for node in nodes) and all(r["agree"] for r in replicas)
    result = {"clean": clean, "nodes": nodes, "repositories": replicas}
    output.result(result, None if output.as_json else _human(result))
    if not clean:
        raise CommandError(_verdict(nodes, replicas))
    return result


def parse(name: str) -> RepositoryName:
    try:
        return RepositoryName.parse(name)
    except BadRepositoryName as error:
        raise CommandError(f"{name!r}: {error}", Exit.USAGE) from error


def _scrub(node: NodePlace, path: str, output: Output) -> dict[str, Any]:
    """Begin a pass, wait for its end, return what it found."""
    result: dict[str, Any] = {"id": node.id, "url": node.url, "problem": "", "reports": [], "repositories": 0, "skipped": 0}
    try:
        before = get(node.url, "/scrub")
        begun = request(node.url, "POST", path)
        if not begun.ok or not before.ok:
            return {**result, "problem": (before if begun.ok else begun).reason}
        shown_at = time.monotonic()
        while True:
            state = get(node.url, "/scrub").body
            if state["run"] >= begun.body["run"] and not state["running"]:
                break
            if time.monotonic() - shown_at > SHOWN_S:
                shown_at = time.monotonic()
                output.progress(f"{node.id}: {state['repositories']} repositories, now {state['repository'] or '…'}")
            time.sleep(POLL_S)
    except NodeSilent as error:
        return {**result, "problem": str(error)}
    new = state["found"] - before.body["found"]
    reports = state["reports"][-new:] if new > 0 else []
    return {**result, "reports": reports, "repositories": state["repositories"], "skipped": state["skipped"]}


def _compare(url: str, name: str | None) -> list[dict[str, Any]]:
    """Every repository's position on every node."""
    names = [str(parse(name))] if name is not None else [repo["repo_id"] for repo in list_repos(url, REPOSITORIES_MAX)[0]]
    answers = at_once(lambda repo: get(url, f"/repos/{quote(repo)}/replicas", local=True), names)
    compared = []
    for repo, answer in zip(names, answers, strict=True):
        if not answer.ok:
            raise refuse(answer, repo)
        replicas = answer.body["replicas"]
        agree = len({(r["version"], r["digest"], r["applied"]) for r in replicas}) == 1
        compared.append({"repo_id": repo, "agree": agree, "replicas": replicas})
    return compared


def _verdict(nodes: list[dict[str, Any]], replicas: list[dict[str, Any]]) -> str:
    parts = [f"{node['id']}: {node['problem']}" for node in nodes if node["problem"]]
    reports = [report for node in nodes for report in node["reports"]]
    unrepaired = [report for report in reports if report["problem"]]
    if reports:
        parts.append(f"damage was found {len(reports)} times, {len(reports) - len(unrepaired)} times repaired")
    parts += [f"{node['id']} could not look at {node['skipped']}: try again" for node in nodes if node["skipped"]]
    parts += [f"{each['repo_id']}: the replicas differ" for each in replicas if not each["agree"]]
    return "; ".join(parts)


def _human(result: dict[str, Any]) -> Group:
    rows = [
        (
            node["id"],
            node["repositories"],
            len(node["reports"]),
            sum(not r["problem"] for r in node["reports"]),
            node["problem"],
        )
        for node in result["nodes"]
    ]
    parts: list[Any] = [table(("node", "looked at", "damaged", "repaired", "problem"), rows)]
    found = [
        (node["id"], report["repository"] or "the journal's file", "; ".join(report["found"]), report["problem"] or "repaired")
        for node in result["nodes"]
        for report in node["reports"]
    ]
    if found:
        parts += ["", table(("node", "repository", "found", "what became of it"), found)]
    return Group(*parts)
