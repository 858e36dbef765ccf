"""``gitquorum rejoin --node N --from …``: let a node that cannot rejoin by itself go on with what is left.

A node rejoins by itself as soon as a majority of the others can tell it what it had said. Where that majority is gone for good,
somebody has to decide what is taken for everything: that is this command, and it can lose acknowledged pushes.
"""

from typing import Any

from node.command.client import refuse, request
from node.command.output import CommandError, Exit, Output
from node.command.state import Home


def rejoin(home: Home, name: str, sources: str | None, output: Output, *, accept_loss: bool, yes: bool) -> dict[str, Any]:
    """A dry run unless ``yes``."""
    cluster = home.load()
    node = cluster.node(name)
    if sources is None:
        raise CommandError(
            f"{node.id} rejoins by itself once a majority of the others answers (gitquorum status says who is missing). "
            "To go on without them say whose records are to be taken: --from node-1,… or --from none",
            Exit.USAGE,
        )
    chosen = [] if sources == "none" else [cluster.node(each.strip()).id for each in sources.split(",") if each.strip()]
    wanted = {"sources": chosen, "accept_loss": accept_loss, "dry_run": not yes}
    answer = request(node.url, "POST", "/rejoin", body=wanted)
    if answer.status == 409:
        raise CommandError(f"{node.id}: {answer.reason}", Exit.FAILED)
    if not answer.ok:
        raise refuse(answer, f"{node.id} was not told to rejoin")
    result = {"node": node.id, "from": chosen, "begun": bool(answer.body.get("begun")), "plan": answer.body.get("plan", "")}
    told = "begun; watch it with: gitquorum status" if yes else "nothing was done; do it with: --yes"
    output.result(result, f"{node.id}: {result['plan']}\n{told}")
    return result
