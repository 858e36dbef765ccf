"""``gitquorum tx show``: what became of a push, who voted how, how long each phase took, and who settled it if need be."""

from typing import Any
from urllib.parse import quote

from rich.console import Group

from node.command.client import get, refuse
from node.command.output import CommandError, Exit, Output, facts, table
from node.protocol.names import BadIdentifier, check_txn_id

_TABLES = ("votes", "phases_ms", "rejections")


def show(url: str, txn: str, output: Output) -> dict[str, Any]:
    """``GET /transactions/{id}``; any node may be asked, it asks the others."""
    try:
        check_txn_id(txn)
    except BadIdentifier as error:
        raise CommandError(f"{txn!r}: {error}", Exit.USAGE) from error
    answer = get(url, f"/transactions/{quote(txn, safe='')}")
    if not answer.ok:
        raise refuse(answer, f"transaction {txn}")
    body: dict[str, Any] = answer.body
    output.result(body, None if output.as_json else _human(body))
    return body


def _human(body: dict[str, Any]) -> Group:
    parts: list[Any] = [facts({name: value for name, value in body.items() if name not in _TABLES})]
    votes = body.get("votes")
    if isinstance(votes, list) and votes:
        parts += ["", table(("voter", "vote", "reason"), [(v.get("node_id"), v.get("vote"), v.get("reason")) for v in votes])]
    phases = body.get("phases_ms")
    if isinstance(phases, dict) and phases:
        parts += ["", table(("phase", "ms"), [(name, f"{ms:.1f}") for name, ms in phases.items()])]
    rejections = body.get("rejections")
    if isinstance(rejections, list) and rejections:
        parts += ["", table(("ref", "refused because"), [(each.get("ref"), each.get("reason")) for each in rejections])]
    return Group(*parts)
