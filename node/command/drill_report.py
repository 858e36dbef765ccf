"""What a drill saw, as a table for people."""

from typing import Any

from rich.console import Group

from node.command.output import table

COLUMNS = ("fault", "node", "result", "pushes", "availability", "first push", "serves", "current", "in doubt")


def human(result: dict[str, Any]) -> Group:
    """A row a round, then what was wrong, then what was proved."""
    proof = result["proof"]
    lines: list[Any] = [table(COLUMNS, [_row(seen) for seen in result["rounds"]]), ""]
    for seen in result["rounds"]:
        lines += [f"{seen['fault']} {seen['node']}: {problem}" for problem in (*seen["problems"], *seen["failures"])]
    lines += [f"proof: {problem}" for problem in proof["problems"]]
    if not proof["problems"]:
        lines.append(
            f"{proof['acknowledged']} acknowledged pushes: all on every node; "
            f"{len(proof['replicas'])} clones by stock git are equal, git fsck is content"
        )
    lines += [f"left out: {kind}: {reason}" for kind, reason in result["left_out"].items()]
    if not result["removed"]:
        lines.append(f"{result['repository']} is still there: gitquorum repo delete {result['repository']}")
    lines.append("PASSED" if result["ok"] else "FAILED")
    return Group(*lines)


def _row(seen: dict[str, Any]) -> tuple[object, ...]:
    doubts = [doubt["ms"] for doubt in seen["in_doubt"] if doubt["ms"] is not None]
    share = seen["availability"]
    return (
        seen["fault"],
        seen["node"],
        "passed" if seen["ok"] else "failed",
        f"{seen['acknowledged']}/{seen['attempts']}",
        "" if share is None else f"{share * 100:.1f} %",
        _seconds(seen["first_push_ms"]),
        _seconds(seen["serves_ms"]),
        _seconds(seen["current_ms"]),
        f"{len(seen['in_doubt'])}, at most {_seconds(max(doubts))}" if doubts else "none",
    )


def _seconds(ms: float | None) -> str:
    return "" if ms is None else f"{ms / 1000:.2f} s"
