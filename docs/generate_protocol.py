"""Fills the generated parts of ``docs/protocol.md``: state diagrams from the machines' tables, numbers from ``quorum.py``.

``python docs/generate_protocol.py`` rewrites them; ``tests/tidy/test_protocol_docs.py`` compares. What stands between a pair of
markers is generated, everything else is written by hand.
"""

import re
import sys
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from node.protocol import coordinator_states, rejoin_states, session
from node.protocol.quorum import blocking, majority

S = TypeVar("S", bound=Enum)
T = TypeVar("T", bound=Enum)

DOCUMENT = Path(__file__).with_name("protocol.md")


def diagram(table: Mapping[S, Mapping[T, S]], first: S, last: S) -> str:
    """A mermaid state diagram; triggers between the same two states share an arrow."""
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {first.name}"]
    for state, row in table.items():
        arrows: dict[str, list[str]] = {}
        for trigger, after in row.items():
            arrows.setdefault(after.name, []).append(str(trigger.value))
        lines += (f"    {state.name} --> {after}: {' / '.join(triggers)}" for after, triggers in arrows.items())
    return "\n".join([*lines, f"    {last.name} --> [*]", "```"])


def members(kind: type[Enum], source: str) -> str:
    """The states with the docstring each has in the source."""
    text = source[source.index(f"class {kind.__name__}(Enum)") :]
    lines = ["| state | meaning |", "|---|---|"]
    for member in kind:
        found = re.search(rf'{member.name} = .*\n    """((?:.|\n)*?)"""', text)
        meaning = re.sub(r"\s+", " ", found.group(1)) if found else ""
        lines.append(f"| `{member.name}` | {meaning} |")
    return "\n".join(lines)


def source_of(module: ModuleType) -> str:
    return Path(str(module.__file__)).read_text()


def quorums() -> str:
    """N = 1…7."""
    lines = [
        "| voters N | majority | blocking set | may be down | the sketch: ceil(N/2) - 1 peers + self | a majority? |",
        "|---|---|---|---|---|---|",
    ]
    for voters in range(1, 8):
        sketch = -(-voters // 2)
        verdict = "yes" if sketch >= majority(voters) else f"**no**: {sketch} and {voters - sketch} could both commit"
        down = voters - majority(voters)
        lines.append(
            f"| {voters} | {majority(voters)} | {blocking(voters)} | {down} | {sketch - 1} + 1 = {sketch} | {verdict} |"
        )
    return "\n".join(lines)


def parts() -> dict[str, str]:
    """Every generated part by the name in its markers."""
    return {
        "quorums": quorums(),
        "coordinator": diagram(coordinator_states.TRANSITIONS, coordinator_states.State.IDLE, coordinator_states.State.STOPPED),
        "coordinator-states": members(coordinator_states.State, source_of(coordinator_states)),
        "voter": diagram(session.TRANSITIONS, session.Phase.ARRIVED, session.Phase.ANSWERED),
        "voter-phases": members(session.Phase, source_of(session)),
        "rejoin": diagram(rejoin_states.TRANSITIONS, rejoin_states.Step.WAITING, rejoin_states.Step.DONE),
        "rejoin-steps": members(rejoin_states.Step, source_of(rejoin_states)),
    }


def filled(text: str) -> str:
    """``text`` with every generated part as it should be.

    Raises:
        ValueError: if a part has no markers.
    """
    for name, part in parts().items():
        pattern = re.compile(rf"(<!-- generated: {name} -->\n).*?(<!-- end: {name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"{DOCUMENT.name} has no markers for {name!r}")
        text = pattern.sub(lambda match, part=part: f"{match[1]}{part}\n{match[2]}", text)  # type: ignore[misc]
    return text


if __name__ == "__main__":
    DOCUMENT.write_text(filled(DOCUMENT.read_text()))
    sys.stdout.write(f"{DOCUMENT} is in step\n")
