"""``gitquorum repair OWNER/REPO --node N``: what is damaged of it on one node, and with ``--yes`` its repair.

The scrub does the same by itself; this is for who does not want to wait for it.
"""

from typing import Any
from urllib.parse import quote

from node.command.client import get, refuse, request
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
        found = answer.body["found"]
        words = "\n".join(f"  {each}" for each in found)
        plan = f"{name} on {node.id} would be set aside and repaired from the other nodes:\n{words}\ndo it with: --yes"
        output.result({**answer.body, "node": node.id, "done": False}, plan if found else f"{name} on {node.id} is whole")
        return dict(answer.body)
    answer = request(node.url, "POST", path, timeout_s=TIMEOUT_S)
    if not answer.ok:
        raise refuse(answer, f"{name} on {node.id}")
    report = answer.body
    words = "; ".join(report["actions"]) if report["found"] else "it is whole, nothing was done"
    output.result({**report, "node": node.id, "done": True}, f"{name} on {node.id}: {words}")
    if report["problem"]:
        raise CommandError(f"{name} on {node.id} is not repaired: {report['problem']}", Exit.FAILED)
    return dict(report)
