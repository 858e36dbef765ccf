"""``python -m tests.simulation.exhaustive.hunt``: the whole catalogue of planted bugs through the small bounds.

Which of ``tests/simulation/planted``'s mutations of the protocol core the explorer finds, in which bound, after how many states
and by how many steps. Mutations of a test cluster (rules that the runtime keeps), of rejoining and of what no small bound has
are left to the seeded simulation and said to be.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from tests.simulation.exhaustive.bounds import BOUNDS, Bound, Budget
from tests.simulation.exhaustive.search import Search
from tests.simulation.planted.catalogue import CATALOGUE
from tests.simulation.planted.planting import Mutation

SLOW = replace(BOUNDS["slow-journals"], name="slow-journals")
TWO = BOUNDS["two"]
WAYS = (
    BOUNDS["push"],
    BOUNDS["crash"],
    BOUNDS["objects"],
    replace(BOUNDS["takeover"], name="takeover"),
    SLOW,
    TWO,
    replace(TWO, name="pushes-at-one", pushes=((1, "t1"), (1, "t2")), budget=Budget(crashes=1, timers=1, claims=2)),
)
"""Tried in this order, each for its share of the time."""

_CORE = ("node.protocol.", "node.protocol")
_ELSEWHERE = ("node.protocol.rejoin", "node.protocol.standing", "node.protocol.incarnations")


@dataclass(frozen=True, slots=True)
class Hunted:
    """One mutation's fate. ``bound`` is empty if no bound found it; ``passed``: those explored to the end without a find."""

    name: str
    rule: str
    bound: str = ""
    states: int = 0
    steps: int = 0
    broken: str = ""
    passed: tuple[str, ...] = ()
    cut_short: tuple[str, ...] = ()


def mutations() -> list[Mutation]:
    """Those that change nothing but the voter, the coordinator and what they are made of."""
    return [one for one in CATALOGUE if all(_of_core(patch.owner) for patch in one.patches)]


def hunt(mutation: Mutation, bounds: Sequence[Bound], seconds: float) -> Hunted:
    """``seconds`` of the processor for each bound."""
    passed: list[str] = []
    cut_short: list[str] = []
    for bound in bounds:
        with mutation.planted():
            found = Search(bound).run(seconds, clock=time.process_time)
        if found.broken:
            way = (found.bound, found.states, len(found.path), found.broken)
            return Hunted(mutation.name, mutation.rule, *way, tuple(passed), tuple(cut_short))
        (passed if found.complete else cut_short).append(bound.name)
    return Hunted(mutation.name, mutation.rule, passed=tuple(passed), cut_short=tuple(cut_short))


def _of_core(owner: object) -> bool:
    module = str(getattr(owner, "__module__", getattr(owner, "__name__", "")))
    return module.startswith(_CORE) and not module.startswith(_ELSEWHERE)


def main(words: Sequence[str]) -> int:
    """0, whatever is found: a mutation that survives here is told, and is the simulation's to find."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.exhaustive.hunt", description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="of the processor, for each mutation in each bound (20)")
    parser.add_argument("--only", action="append", metavar="NAME", help="this mutation; several times for several")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(words)
    chosen = [one for one in mutations() if not asked.only or one.name in asked.only]
    results = []
    if not asked.json:
        _say("| mutation | rule | found in | states | steps | what broke |\n|---|---|---|---|---|---|")
    for mutation in chosen:
        one = hunt(mutation, WAYS, asked.seconds)
        results.append(one)
        if not asked.json:
            complete = ", ".join(one.passed) or "none"
            where = one.bound or f"not found (complete: {complete}; cut short: {', '.join(one.cut_short) or 'none'})"
            _say(f"| {one.name} | {one.rule} | {where} | {one.states:,} | {one.steps} | {one.broken[:90]} |")
    if asked.json:
        _say(json.dumps([asdict(one) for one in results], indent=2))
    found = sum(bool(one.bound) for one in results)
    sys.stderr.write(f"{found} of {len(results)} found; {len(CATALOGUE) - len(mutations())} others are not of this core\n")
    return 0


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
