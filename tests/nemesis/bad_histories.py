"""Histories written by hand that no correct server can give, each with what is wrong in it; and good ones that look bad.

Written as a table of lines, ``client start–end what = answer``; values are letters. ``tests/nemesis/test_linearizability.py``
wants the checker to refuse every bad one and to take every good one.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tests.nemesis.history import ZERO, Kind, Operation, Outcome, Update, refs

_LINE = re.compile(
    r"(?P<client>\w+) +(?P<start>[\d.]+)–(?P<end>[\d.]+) +(?P<verb>push|create|delete|read|local)(?P<what>[^=]*)=(?P<answer>.*)"
)
_UPDATE = re.compile(r"(\w+):(\w+)→(\w+)")
_VERB = {
    "push": Kind.PUSH,
    "create": Kind.CREATE,
    "delete": Kind.DELETE,
    "read": Kind.READ,
    "local": Kind.LOCAL_READ,
}


@dataclass(frozen=True)
class Written:
    """A history with its name and what is to be seen in it."""

    name: str
    why: str
    lines: str

    @property
    def operations(self) -> list[Operation]:
        return parse(self.lines)


def parse(lines: str) -> list[Operation]:
    """Raises ``ValueError`` for a line that is none."""
    found = []
    for number, line in enumerate(filter(None, map(str.strip, lines.splitlines())), start=1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"not a line of a history: {line}")
        found.append(_operation(number, match))
    return found


def _operation(number: int, match: re.Match[str]) -> Operation:
    kind, answer = _VERB[match["verb"]], match["answer"].split()
    reads = kind in (Kind.READ, Kind.LOCAL_READ)
    version = next((int(word[1:]) for word in answer if re.fullmatch(r"v\d+", word)), None)
    said = [word for word in answer if not re.fullmatch(r"v\d+", word)]
    value = None if said == ["gone"] else refs(tuple(word.split(":")) for word in said) if reads else None
    return Operation(
        number=number,
        client=match["client"],
        kind=kind,
        repository="r",
        node=1,
        start=float(match["start"]),
        end=float(match["end"]),
        outcome=Outcome.COMMITTED if reads else Outcome(said[0]),
        updates=tuple(Update(ref, _oid(old), _oid(new)) for ref, old, new in _UPDATE.findall(match["what"])),
        value=value,
        version=version,
    )


def _oid(letter: str) -> str:
    return ZERO if letter == "none" else letter


BAD: Sequence[Written] = (
    Written(
        "stale read after an acknowledged write",
        "B begins to read when A has its ok, and is shown the table from before",
        """
        A 0–1 create =committed
        A 2–3 push main:none→a =committed
        B 4–5 read =
        """,
    ),
    Written(
        "lost update",
        "both pushes replace a; one of the two acknowledged values is nowhere, whichever stood first",
        """
        A 0–1 create =committed
        A 2–3 push main:none→a =committed
        A 4–6 push main:a→b =committed
        B 7–8 push main:a→c =committed
        C 9–10 read =main:c
        """,
    ),
    Written(
        "two winners of one compare-and-swap",
        "both are under way at once, both replace nothing, and nothing can be replaced once only",
        """
        A 0–1 create =committed
        A 2–5 push main:none→a =committed
        B 2–5 push main:none→b =committed
        """,
    ),
    Written(
        "read of an aborted value",
        "A was told, for certain, that a will never appear; B sees it",
        """
        A 0–1 create =committed
        A 2–3 push main:none→a =aborted
        B 4–5 read =main:a
        """,
    ),
    Written(
        "two clients that go back in time",
        "while A's push is under way either answer is right, but once B was shown a, C, who asks later, must be, too",
        """
        A 0–1 create =committed
        A 2–9 push main:none→a =committed
        B 3–4 read =main:a
        C 5–6 read =
        """,
    ),
    Written(
        "one client that goes back in time",
        "a single reader, the write's outcome unknown for ever: seen is seen",
        """
        A 0–1 create =committed
        A 2–3 push main:none→a =unknown
        B 4–5 read =main:a
        B 6–7 read =
        """,
    ),
    Written(
        "split brain",
        "two halves, each with a writer and a reader of its own, each consistent in itself, together impossible",
        """
        A 0–1 create =committed
        A 2–3 push main:none→a =committed
        B 2–3 push main:none→b =unknown
        A 4–5 read =main:a
        B 4–5 read =main:b
        A 6–7 read =main:a
        """,
    ),
    Written(
        "a read from the future",
        "B's answer was complete before A's push began",
        """
        A 0–1 create =committed
        B 2–3 read =main:a
        A 4–5 push main:none→a =committed
        """,
    ),
    Written(
        "a resurrected value",
        "a was replaced by b and seen replaced; nobody put it back",
        """
        A 0–1 create =committed
        A 2–3 push main:none→a =committed
        A 4–5 push main:a→b =committed
        B 6–7 read =main:b
        B 8–9 read =main:a
        """,
    ),
    Written(
        "a deleted ref that comes back",
        "the deletion was acknowledged; the unknown push needs a ref that is not there, and has had its effect before",
        """
        A 0–1 create =committed
        A 2–3 push main:none→a =unknown
        B 4–5 read =main:a
        B 6–7 push main:a→none =committed
        B 8–9 read =
        B 10–11 read =main:a
        """,
    ),
    Written(
        "write skew between a deletion and a creation",
        "the deletion took the repository that A had pushed to; the new one begins empty, and yet shows the old ref",
        """
        A 0–1 create =committed
        A 2–3 push main:none→a =committed
        B 4–5 delete =committed
        C 6–7 create =committed
        D 8–9 read =main:a
        """,
    ),
    Written(
        "created twice",
        "nobody deleted it between two creations that were both acknowledged",
        """
        A 0–1 create =committed
        B 0–1 create =committed
        """,
    ),
    Written(
        "an unknown write that takes effect before its start",
        "it may come late or never, but not early",
        """
        A 0–1 create =committed
        B 2–3 read =main:a
        A 4–5 push main:none→a =unknown
        """,
    ),
    Written(
        "an unknown write that takes effect twice",
        "the ref is deleted in between, which the unknown push did once survive; a second time is once too often",
        """
        A 0–1 create =committed
        A 2–3 push main:none→a =unknown
        B 4–5 push main:a→none =committed
        C 6–7 push main:a→none =committed
        """,
    ),
    Written(
        "half of an atomic push",
        "both refs change at one moment; a reader sees one of them changed",
        """
        A 0–1 create =committed
        A 2–9 push main:none→a dev:none→b =committed
        B 3–4 read =main:a
        """,
    ),
    Written(
        "two readers, two writers, two orders",
        "each ref by itself is fine; together the first reader says a before b, the second b before a",
        """
        A 0–1 create =committed
        A 2–9 push main:none→a =committed
        B 2–9 push dev:none→b =committed
        C 3–4 read =main:a
        D 5–6 read =dev:b
        """,
    ),
    Written(
        "a push to what is gone",
        "the deletion was acknowledged before the push began, and nobody created it anew",
        """
        A 0–1 create =committed
        A 2–3 delete =committed
        B 4–5 push main:none→a =committed
        """,
    ),
)

GOOD: Sequence[Written] = (
    Written("nothing", "no operation at all", ""),
    Written(
        "a plain life",
        "one after the other",
        """
        A 0–1 read =gone
        A 2–3 create =committed
        A 4–5 push main:none→a =committed
        B 6–7 read =main:a
        B 8–9 push main:a→none =committed
        B 10–11 read =
        A 12–13 delete =committed
        B 14–15 read =gone
        A 16–17 create =committed
        B 18–19 read =
        """,
    ),
    Written(
        "old and new while the push is under way",
        "the old value is seen first, then the new one, both before the push has its ok",
        """
        A 0–1 create =committed
        A 2–9 push main:none→a =committed
        B 3–4 read =
        C 5–6 read =main:a
        """,
    ),
    Written(
        "an unknown write that comes late",
        "it was not there, and then, long after its client gave up, it was",
        """
        A 0–1 create =committed
        A 2–3 push main:none→a =unknown
        B 4–5 read =
        B 40–41 read =
        B 50–51 read =main:a
        """,
    ),
    Written(
        "an unknown write that never comes",
        "another push takes its place",
        """
        A 0–1 create =committed
        A 2–3 push main:none→a =unknown
        B 4–5 push main:none→b =committed
        B 6–7 read =main:b
        """,
    ),
    Written(
        "touching at one moment",
        "of the same instant nobody is before the other",
        """
        A 0–1 create =committed
        B 1–2 push main:none→a =committed
        C 0–1 read =main:a
        """,
    ),
    Written(
        "a crowd whose order only the reads tell",
        "three pushes in a chain, started in the wrong order, all under way at once",
        """
        A 0–1 create =committed
        A 2–9 push main:b→c =committed
        B 2–9 push main:a→b =committed
        C 2–9 push main:none→a =committed
        D 3–4 read =main:a
        D 5–6 read =main:b
        D 7–8 read =main:c
        """,
    ),
    Written(
        "an unknown deletion between two creations",
        "the second creation can only be explained by it",
        """
        A 0–1 create =committed
        A 2–3 delete =unknown
        B 4–5 create =committed
        """,
    ),
    Written(
        "refused and aborted writes",
        "they leave nothing",
        """
        A 0–1 create =committed
        A 2–3 push main:none→a =aborted
        A 4–5 push main:x→b =rejected
        A 6–7 push main:none→c =unsent
        B 8–9 read =
        """,
    ),
)
