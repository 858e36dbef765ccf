"""``python -m tests.simulation.exhaustive``: explore bounds, replay what was found, run them against planted bugs."""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from threading import Lock

from tests.simulation.exhaustive.bounds import BOUNDS, Bound
from tests.simulation.exhaustive.plants import PLANTS
from tests.simulation.exhaustive.search import Found, Search
from tests.simulation.exhaustive.space import Space
from tests.simulation.exhaustive.story import told

PROGRAM = "tests.simulation.exhaustive"

MEMORY_MIB = 6000
"""What one search may take: two of them fit a machine of 16 GiB."""


def main(words: Sequence[str]) -> int:
    """0: nothing was broken. 1: something was. 2: the words make no sense (argparse says why)."""
    asked = _parser().parse_args(words)
    if asked.list:
        for bound in BOUNDS.values():
            _say(f"{bound.name:22} {bound.voters} voters; {bound.what}")
        for name, plant in PLANTS.items():
            _say(f"--plant {name:22} {plant.what}")
        return 0
    bounds = _chosen(asked.bound)
    planted = PLANTS[asked.plant].planted() if asked.plant else nullcontext()
    if asked.replay is not None:
        with planted:
            for line in told(Space(bounds[0]), [int(turn) for turn in asked.replay.split(",") if turn]):
                _say(line)
        return 0
    if len(bounds) == 1:
        with planted:
            found = [Search(bounds[0]).run(asked.seconds, asked.memory_mib, _progress)]
    else:
        found = _side_by_side(bounds, asked)
    if asked.json:
        _say(json.dumps([one.as_dict() for one in found], indent=2))
    else:
        _table(found)
    for one in found:
        _explain(one, asked.plant)
    return int(any(one.broken for one in found))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m {PROGRAM}",
        description="Every interleaving of the real protocol machines, within bounds. Breadth first; says what is complete.",
    )
    parser.add_argument("--bound", action="append", metavar="NAME", help="which; several times for several; all, quick (all)")
    parser.add_argument("--seconds", type=float, default=1800.0, help="for all of them together (1800)")
    parser.add_argument("--memory-mib", type=int, default=MEMORY_MIB, help=f"for each of them ({MEMORY_MIB})")
    parser.add_argument("--workers", type=int, default=2, help="searches side by side (2)")
    parser.add_argument("--plant", choices=sorted(PLANTS), metavar="NAME", help="break the protocol core first; see --list")
    parser.add_argument("--replay", metavar="TURNS", help="tell one way through the bound step by step: 0,3,1,…")
    parser.add_argument("--json", action="store_true", help="everything that was counted, for programs")
    parser.add_argument("--list", action="store_true", help="the bounds and the planted bugs")
    return parser


def _chosen(names: list[str] | None) -> list[Bound]:
    chosen: list[Bound] = []
    for name in names or ["all"]:
        if name == "all":
            chosen += BOUNDS.values()
        elif name == "quick":
            chosen += (bound for bound in BOUNDS.values() if bound.quick)
        elif name in BOUNDS:
            chosen.append(BOUNDS[name])
        else:
            raise SystemExit(f"no bound is called {name!r}; there are {', '.join(BOUNDS)}, all and quick")
    return chosen


def _side_by_side(bounds: list[Bound], asked: argparse.Namespace) -> list[Found]:
    """Each in a process of its own, which gets its share of the time that is left when it begins."""
    until = time.monotonic() + asked.seconds
    left, lock = len(bounds), Lock()

    def explore(bound: Bound) -> Found:
        nonlocal left
        with lock:
            time_left = until - time.monotonic()
            seconds = max(1.0, min(time_left, time_left * asked.workers / left))
            left -= 1
        command = [sys.executable, "-m", PROGRAM, "--bound", bound.name, "--json", f"--seconds={seconds:.1f}"]
        command += [f"--memory-mib={asked.memory_mib}", *([f"--plant={asked.plant}"] if asked.plant else [])]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode not in (0, 1) or not done.stdout:
            raise SystemExit(f"the search of {bound.name} ended with {done.returncode}")
        return Found(**json.loads(done.stdout)[0])

    with ThreadPoolExecutor(asked.workers) as pool:
        return list(pool.map(explore, bounds))


def _progress(found: Found) -> None:
    sys.stderr.write(
        f"{found.bound}: {found.states:,} states, {found.transitions:,} transitions, every way of {found.depth_complete} steps"
        f" explored, {found.seconds:.0f} s, {found.memory_mib} MiB\n"
    )
    sys.stderr.flush()


def _table(found: list[Found]) -> None:
    _say("| bound | explored | states | transitions | depth | at rest | settled | seconds | MiB |")
    _say("|---|---|---|---|---|---|---|---|---|")
    for one in found:
        how = "BROKEN" if one.broken else "complete" if one.complete else f"incomplete: to depth {one.depth_complete}"
        _say(
            f"| {one.bound} | {how} | {one.states:,} | {one.transitions:,} | {one.depth} | {one.at_rest:,} |"
            f" {one.settlings:,} | {one.seconds:.0f} | {one.memory_mib} |"
        )


def _explain(found: Found, plant: str | None) -> None:
    if found.broken:
        turns = ",".join(map(str, found.path))
        with_plant = f" --plant {plant}" if plant else ""
        lines = [
            f"\n{found.bound}: BROKEN after {found.states:,} states, by {len(found.path)} steps: {found.broken}",
            *found.story,
            f"replay: python -m {PROGRAM} --bound {found.bound}{with_plant} --replay {turns}\n",
        ]
        sys.stderr.write("\n".join(lines))
    if found.surprises and not plant:
        sys.stderr.write(f"{found.bound}: {found.surprises} messages were taken for dead and were not (they were kept)\n")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
