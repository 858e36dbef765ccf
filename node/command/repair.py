"""``gitquorum repair OWNER/REPO --node N``: what is damaged of it on one node and what its repair would come to, which may be
that the node rejoins; with ``--yes`` its repair.

The scrub does the same by itself; this is for who does not want to wait for it.
"""

from typing import Any
from urllib.parse import quote

from node.command.client import Answer, get, refuse, request
from node.command.output import CommandError, Exit, Output
from node.command.state import Home
from node.command.verify import parse

TIMEOUT_S = 3600.0


def repair(home: Home, name: str, node_name: str, output: Output, *, yes: bool) -> dict[str, Any]:
    """A dry run unless ``yes``."""
    node = home.load().node(node_name)
    path = f"/repair/{quote(str(parse(name)))}"
    known = get(node.url, f"/repos/{quote(str(parse(name)))}/replicas", local=True)
    if known.status == 404:  # nothing is damaged of what never was
        raise refuse(known, f"{name} on {node.id}")
    if not yes:
        answer = get(node.url, path, TIMEOUT_S)
        if not answer.ok:
            raise refuse(answer, f"{name} on {node.id}")
        found, would = answer.body["found"], answer.body["would"]
        lines = [f"{name} on {node.id}: {would}", *(f"  {each}" for each in found), *(["do it with: --yes"] if found else [])]
        plan = "\n".join(lines) if would else f"{name} on {node.id} is whole"
        output.result({**answer.body, "node": node.id, "done": False}, plan)
        return dict(answer.body)
    answer = request(node.url, "POST", path, timeout_s=TIMEOUT_S)
    if not answer.ok:
        raise refuse(answer, f"{name} on {node.id}")
    report = answer.body
    words = "; ".join(report["actions"]) if report["found"] else _untouched(get(node.url, path, TIMEOUT_S))
    output.result({**report, "node": node.id, "done": True}, f"{name} on {node.id}: {words}")
    if report["problem"]:
        raise CommandError(f"{name} on {node.id} is not repaired: {report['problem']}", Exit.FAILED)
    return dict(report)


def _untouched(plan: Answer) -> str:
    """Nothing was found: the replica is whole, or set aside for what no repair ends."""
    would = plan.body["would"] if plan.ok else ""
    return f"nothing was done; {would}" if would else "it is whole, nothing was done"
