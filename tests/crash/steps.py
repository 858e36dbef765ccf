"""Every point of every script, struck by every fault, and what the disk is like afterwards.

    python -m tests.crash.steps --workers 2           all of it
    python -m tests.crash.steps --script push-small --fault kill --call fsync --number 3     one run, to look at it

``--share I/N`` takes every N-th point, beginning with the I-th: a spread share of the same points each time.
"""

import argparse
import asyncio
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from tests.crash import checks, seccomp, watch
from tests.crash.scripts import ALONE, Script, all_scripts
from tests.crash.subject import Subject, hurry
from tests.crash.watch import Fault, Seen

FEW = 3
"""So many points at least are in any share."""


@dataclass
class Report:
    """Of one script and one fault."""

    script: str
    fault: str
    struck: Counter[str] = field(default_factory=Counter)
    """By call: at how many points the fault struck."""
    wrong: list[str] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    pages_lost: int = 0
    seconds: float = 0.0


class Place:
    """A folder for one script: the prepared disk, and one run at a time."""

    def __init__(self, script: Script, folder: Path) -> None:
        self.script = script
        self.folder = folder
        self.template = folder / "template"
        self.data = folder / "run" / "data"
        script.make(folder / "packs")
        self._make_template()

    def _make_template(self) -> None:
        self.fresh(empty=True)
        told = self.life(lambda tell, room: asyncio.run(self._prepare(tell)))
        assert not told.code, told.told
        shutil.copytree(self.data, self.template)

    async def _prepare(self, tell: Any) -> None:
        node = self.subject(tell, "template")
        await node.start()
        assert await self.script.prepare(self.script, node)
        await node.settle()
        await node.stop()

    def fresh(self, *, empty: bool = False) -> None:
        shutil.rmtree(self.folder / "run", ignore_errors=True)
        self.data.parent.mkdir()
        if not empty:
            shutil.copytree(self.template, self.data)

    def subject(self, tell: Any, life: str) -> Subject:
        return Subject(self.data, self.script.nodes, tell, self.script.chain, self.script.packs, life)

    def life(self, function: Callable[..., None], fault: Fault | None = None, lost: watch.Lost | None = None) -> Seen:
        return watch.run(function, self.data, fault, lost)

    # ------------------------------------------------------------ one run

    async def _operate(self, tell: Any, made_room: Callable[[], None], again: bool) -> None:
        node = self.subject(tell, "operation")
        try:
            await node.start()
        except Exception as error:
            tell("not started", reason=str(error))
            return
        done = await self.script.operation(self.script, node)
        tell("first", done=done)
        await node.settle()
        node.tell_state()
        if again:
            made_room()
            await asyncio.sleep(0.02)
            tell("second", done=await self.script.operation(self.script, node))
            await node.settle()
            node.tell_state()
        await node.stop()
        tell("end")

    async def _restart(self, tell: Any) -> None:
        node = self.subject(tell, "restart")
        await node.start()
        await node.settle()
        await node.stop()

    async def _check(self, tell: Any, told: list[dict[str, Any]]) -> None:
        again: list[dict[str, Any]] = []
        node = self.subject(lambda kind, **facts: again.append({"kind": kind, **facts}), "check")
        await node.start()
        await node.settle()
        problems = await checks.leftovers(node)
        problems += await checks.promises(node, told) + await checks.visible(node, told)
        if not await self.script.operation(self.script, node):
            problems.append(f"cannot be done again: {again[-1:]}")
        await node.settle()
        problems += [f"afterwards: {one}" for one in await checks.visible(node, [*told, *again])]
        problems += [f"afterwards: {one}" for one in await checks.promises(node, [*told, *again])]
        await node.stop()
        tell("checked", problems=problems)

    def strike(self, fault: Fault, report: Report, *, restart_first: bool = False) -> bool:
        """One run, and the look at what it left. Returns whether the fault struck."""
        self.fresh()
        again = fault.kind != "kill"
        seen = self.life(lambda tell, room: asyncio.run(self._operate(tell, room, again)), fault)
        if not seen.fired:
            return False
        report.struck[fault.call] += 1
        where = f"{self.script.name} {fault} {seen.fired.removeprefix(str(self.data))}"
        problems = [f"broke: {one['error']}" for one in seen.told if one["kind"] == "broke"]
        problems += judge(fault, seen, self.script.nodes == ALONE)
        report.outcomes[outcome_of(seen)] += 1
        if seen.lost is not None:
            if restart_first:
                self.life(lambda tell, room: asyncio.run(self._restart(tell)), lost=seen.lost)
            report.pages_lost += seen.lost.forget()
            seen.lost.close()
        look = self.life(lambda tell, room: asyncio.run(self._check(tell, seen.told)))
        problems += [problem for one in look.told for problem in one.get("problems", [])]
        problems += [f"broke in the check: {one['error']}" for one in look.told if one["kind"] == "broke"]
        if not any(one["kind"] == "checked" for one in look.told):
            problems.append("was not checked")
        report.wrong += [f"{where}: {problem}" for problem in problems]
        return True


def judge(fault: Fault, seen: Seen, alone: bool) -> list[str]:
    """What the process itself should have said. ``alone``: its second operation is a new one, and needs the journal."""
    told = seen.told
    kinds = [one["kind"] for one in told]
    states = [one for one in told if one["kind"] == "state"]
    problems = []
    if fault.kind == "kill":
        return [] if seen.code == -9 else [f"was not killed: {seen.code}"]
    if "not started" in kinds or "broke" in kinds:
        return []
    if "end" not in kinds:
        problems.append(f"did not end: {seen.code} {told[-1:]}")
    seconds = [one["done"] for one in told if one["kind"] == "second"]
    journal_sync = fault.call in watch.SYNCS and "/.journal/journal.sqlite" in seen.fired
    if fault.kind == "eio" and journal_sync and states:
        if seconds[-1:] == [True] and alone:
            problems.append("acknowledged after a failed fsync of the journal")
        if states[-1]["write_ready"] or not states[-1]["problem"]:
            problems.append(f"a failed fsync does not show: {states[-1]}")
    if fault.kind in ("enospc", "full") and seconds != [True] and not (states and states[0]["failed"]):
        problems.append(f"did not recover when there was room: {told[-4:]}")
    return problems


def outcome_of(seen: Seen) -> str:
    kinds = [one["kind"] for one in seen.told]
    if "not started" in kinds:
        return "did not start"
    if "first" not in kinds:
        return "died in the middle" if seen.code == -9 else "did not end"
    first = next(one["done"] for one in seen.told if one["kind"] == "first")
    return "acknowledged" if first else "refused"


def points_of(place: Place) -> Counter[str]:
    """A clean run."""
    place.fresh()
    seen = place.life(lambda tell, room: asyncio.run(place._operate(tell, room, False)))
    assert [one["done"] for one in seen.told if one["kind"] == "first"] == [True], seen.told
    assert seen.code == 0, seen.told
    return seen.points


def faults(kind: str, points: Counter[str]) -> list[Fault]:
    """Every point of a clean run."""
    calls = [call for call in sorted(points) if kind != "full" or call in watch.NEEDS_ROOM]
    return [Fault(kind, call, number) for call in calls for number in range(1, points[call] + 1)]


def spread(everything: list[Fault], share: tuple[int, int]) -> list[Fault]:
    """Every N-th, from the I-th on; a few of them even where there are few."""
    number, of = share
    step = max(1, min(of, len(everything) // FEW))
    return everything[number % step :: step]


def run_script(script: Script, kinds: tuple[str, ...], share: tuple[int, int], folder: Path) -> Iterator[Report]:
    place = Place(script, folder)
    points = points_of(place)
    for kind in kinds:
        began, report = time.monotonic(), Report(script.name, kind)
        for fault in spread(faults(kind, points), share):
            place.strike(fault, report)
            if kind == "eio" and fault.call in watch.SYNCS:
                place.strike(fault, report, restart_first=True)
        report.seconds = round(time.monotonic() - began, 1)
        yield report


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="tests.crash.steps", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    names = [script.name for script in all_scripts()]
    parser.add_argument("--script", action="append", choices=names, help="only this one (may be given again)")
    parser.add_argument("--fault", action="append", choices=watch.KINDS)
    parser.add_argument("--call", help="with --number: one point")
    parser.add_argument("--number", type=int)
    parser.add_argument("--share", default="0/1", metavar="I/N")
    parser.add_argument(
        "--folder", type=Path, help="where the disks are (default: a temporary folder, in memory if there is one)"
    )
    parser.add_argument("--workers", type=int, default=1, help="scripts that run at once")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    hurry()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    if why := seccomp.why_not():
        sys.stderr.write(f"cannot be run here: {why}\n")
        return 2
    share = tuple(map(int, asked.share.split("/")))
    kinds = tuple(asked.fault or watch.KINDS)
    reports: list[Report] = []
    if asked.workers > 1:
        return _side_by_side(asked.script or names, arguments, asked.workers)
    base = asked.folder or (Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None)
    with tempfile.TemporaryDirectory(prefix="gitquorum-crash-", dir=base) as folder:
        for script in all_scripts():
            if asked.script and script.name not in asked.script:
                continue
            if asked.call:
                place = Place(script, Path(folder) / script.name)
                report = Report(script.name, kinds[0])
                for restart_first in (False, True):
                    place.strike(Fault(kinds[0], asked.call, asked.number), report, restart_first=restart_first)
                reports.append(report)
                _say(report, asked.json)
                continue
            for report in run_script(script, kinds, (share[0], share[1]), Path(folder) / script.name):
                reports.append(report)
                _say(report, asked.json)
    return 1 if any(report.wrong for report in reports) else 0


def _side_by_side(names: list[str], arguments: list[str], workers: int) -> int:
    """One process a script, so many at once; each says what it has to say when it is done."""

    def one(name: str) -> int:
        command = [sys.executable, "-m", "tests.crash.steps", *arguments, "--workers", "1", "--script", name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        sys.stdout.write(done.stdout + done.stderr)
        sys.stdout.flush()
        return done.returncode

    with ThreadPoolExecutor(workers) as pool:
        return max(pool.map(one, names))


def _say(report: Report, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(vars(report)) + "\n")
    else:
        struck = " ".join(f"{call}:{number}" for call, number in sorted(report.struck.items()))
        outcomes = ", ".join(f"{number} {what}" for what, number in report.outcomes.most_common())
        sys.stdout.write(
            f"{report.script:15} {report.fault:7} {sum(report.struck.values()):4} points  {report.seconds:6.1f} s  {struck}\n"
        )
        sys.stdout.write(f"{'':29}{outcomes}; {report.pages_lost} pages lost\n")
        for wrong in report.wrong:
            sys.stdout.write(f"  WRONG {wrong}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
