"""docs/operations.md names everything that an operator can see: each field of /health, each event of the log."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from api.schemas import Health

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text()

WRITTEN = {
    "log": ("info", "warning", "error", "exception"),
    "_log": ("warning", "error", "exception"),
}
"""Which levels are written (node/logs.py): structlog's ``log`` from info on, the standard library's from warning on."""


def rows(part: str) -> Iterator[tuple[list[str], str]]:
    """(the names in the first column, the second column) of the table between ``part``'s marks."""
    table = PAGE.partition(f"<!-- {part}:")[2].partition(f"<!-- end of {part} -->")[0]
    for line in table.splitlines():
        cells = line.split("|")
        if len(cells) > 3 and (names := re.findall(r"`([^`]+)`", cells[1])):
            yield names, cells[2].strip()


def emitted() -> Iterator[tuple[str, str]]:
    """(event, level) of every line that the code logs."""
    for folder in ("node", "broker", "api"):
        for path in (ROOT / folder).rglob("*.py"):
            for call in ast.walk(ast.parse(path.read_text())):
                match call:
                    case ast.Call(
                        func=ast.Attribute(value=ast.Name(id=("log" | "_log") as logger), attr=level),
                        args=[ast.Constant(value=str(event)), *_],
                    ) if level in WRITTEN[logger]:
                        yield re.sub(r"%(\.\d+)?[a-z]", "…", event), "error" if level == "exception" else level
                    case ast.Call(func=ast.Attribute(value=ast.Name(id=("log" | "_log") as logger), attr=level)):
                        assert level not in WRITTEN[logger], f"{path}:{call.lineno}: an event's name is a constant"


def test_every_event_of_the_log_is_explained_at_its_level_and_no_other() -> None:
    explained = {(name, level) for names, levels in rows("log events") for name in names for level in levels.split(", ")}
    assert explained == set(emitted())


def test_every_field_of_health_is_explained() -> None:
    explained = {name for names, _ in rows("health fields") for name in names if name != "/health"}
    assert explained == set(Health.model_fields)
