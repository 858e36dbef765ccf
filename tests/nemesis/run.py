"""One run: a field, a town full of clients, faults for so long, then peace, and judgement."""

import asyncio
import json
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.nemesis import replicas
from tests.nemesis.chains import Fault, Violation, check_chains
from tests.nemesis.clients import Client, Recorder
from tests.nemesis.field import NODES, Field
from tests.nemesis.history import History, Kind, Operation, Outcome
from tests.nemesis.linearizability import CONFIGURATIONS_MAX, Finding, Verdict, check
from tests.nemesis.plan import Tally, chosen, strike
from tests.nemesis.repository_model import RepositoryModel, calls_of
from tests.nemesis.workload import GitUser, Person, Town

PROGRESS_S = 15.0
OURS = (
    *('"alarm"', '"machine failed"', '"task failed"', '"internal error"', '"callback failed"', '"scrub failed"'),
    '"event": "handler of ',
)
"""Events that tell of a fault of ours, which no fault from outside excuses."""
Say = Callable[[str], None]


@dataclass
class Summary:
    """The figures of a run; ``bad`` says in words what was wrong, and is empty for a good one."""

    seed: int
    git_commit: str
    seconds: float = 0.0
    attempts: int = 0
    acknowledged: int = 0
    aborted: int = 0
    rejected: int = 0
    unknown: int = 0
    unsent: int = 0
    reads: int = 0
    local_reads: int = 0
    reads_failed: int = 0
    repositories: int = 0
    write_availability: float = 0.0
    """Acknowledged writes, of those that reached a node and were not rejected for a reason of their own."""
    read_availability: float = 0.0
    faults: dict[str, dict[str, int]] = field(default_factory=dict)
    faults_not_possible: list[str] = field(default_factory=list)
    lost: int = 0
    divergent: int = 0
    non_linearizable: int = 0
    undecided: int = 0
    corrupt: int = 0
    unsettled: int = 0
    odd_answers: int = 0
    certificates: int = 0
    certificates_missing: int = 0
    objects_read: int = 0
    configurations_most: int = 0
    bad: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not self.bad

    def json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Wish:
    """What shall be run."""

    folder: Path
    seconds: float
    seed: int
    faults: Sequence[str] = ("all",)
    persons: int = 6
    git_users: int = 1
    configurations_max: int = CONFIGURATIONS_MAX


async def run(wish: Wish, say: Say) -> Summary:
    """Do it; everything that was started is ended when this returns, or raises."""
    place = Field(wish.folder)
    kinds, impossible = chosen(wish.faults, place)
    summary = Summary(wish.seed, _git_commit(), faults_not_possible=impossible)
    for each in impossible:
        say(f"not possible here: {each}")
    recorder = Recorder(History(wish.folder / "history.jsonl"))
    tally = Tally()
    town = Town()
    try:
        say(f"seed {wish.seed}, {wish.seconds:g} s, {len(kinds)} kinds of faults, data in {wish.folder}")
        await place.open()
        say("three nodes and a broker run")
        began = time.monotonic()
        await _storm(wish, place, kinds, town, recorder, tally, say)
        summary.seconds = round(time.monotonic() - began, 1)
        say("peace: everything is mended")
        await _last_words(place, town, recorder)
        names = [each.name for each in town.all]
        unsettled = await replicas.settled(place, names)
        seen = await replicas.look(place, names)
        for number in NODES:
            if code := await place.stop(number):
                summary.bad.append(f"node-{number} ended with {code} after SIGTERM")
        histories = recorder.history.by_repository()
        needed = {
            name: replicas.acknowledged(histories.get(name, []), next(iter(each.values())).changes)
            for name, each in seen.replicas.items()
            if each
        }
        say("judging: disks")
        await asyncio.to_thread(replicas.look_at_disks, place, seen, needed)
    finally:
        if place.session is not None:
            await place.session.close()
        await place.close()
    say("judging: histories")
    _count(summary, recorder, tally, kinds)
    _judge(summary, wish, recorder, seen, unsettled)
    for number, node in place.nodes.items():
        for line in node.log().splitlines():
            if '"level":"error"' in line.replace(" ", "") or "Traceback" in line:
                summary.bad += [f"node-{number} logged: {line[:400]}"] if _is_ours(line) else []
    return summary


def _is_ours(line: str) -> bool:
    """A fault of ours, which no outside fault excuses (docs/operations.md, "The log"). A replica that is set aside because bits
    were flipped in it is what should happen."""
    if '"alarm"' in line and '"damaged' in line:
        return False
    if '"logger": "asyncio"' in line:  # what nobody caught, or looked at; the exception is a fault of pika (docs/operations.md)
        return "_on_connection_workflow_done" not in line
    return any(event in line for event in OURS)


async def _storm(
    wish: Wish, place: Field, kinds: Sequence[Any], town: Town, recorder: Recorder, tally: Tally, say: Say
) -> None:
    """Clients and faults side by side; afterwards no client is under way and nothing is broken."""
    urls = {number: node.url for number, node in place.nodes.items()}
    persons = [Person(number, wish.seed, urls, town, recorder) for number in range(1, wish.persons + 1)]
    users = [
        GitUser(number, wish.seed, urls, town, recorder, wish.folder / f"git-{number}.git")
        for number in range(1, wish.git_users + 1)
    ]
    for user in users:
        await asyncio.to_thread(user.client.open)
    enough = asyncio.Event()
    until = time.monotonic() + wish.seconds
    try:
        async with asyncio.TaskGroup() as group:
            for person in persons:
                group.create_task(person.live(enough))
            for user in users:
                group.create_task(user.live(enough))
            progress = group.create_task(_progress(recorder, tally, say))
            async with asyncio.TaskGroup() as hands:
                for hand in ("nodes", "wires"):
                    hands.create_task(strike(hand, kinds, place, wish.seed, until, tally, say))
                hands.create_task(asyncio.sleep(wish.seconds))
            await _mend(place)
            await asyncio.sleep(3)  # some writes in peace
            progress.cancel()
            enough.set()
    finally:
        for person in persons:
            await person.client.close()


async def _mend(place: Field) -> None:
    """Whatever a fault left behind; each mends its own, this makes sure."""
    place.network.mend()
    if place.rabbit.endpoints() is None:
        await place.broker_start()
    for number, node in place.nodes.items():
        if node.paused:
            place.resume(number)
        if not node.alive:
            await place.start(number)


async def _progress(recorder: Recorder, tally: Tally, say: Say) -> None:
    while True:
        await asyncio.sleep(PROGRESS_S)
        outcomes = Counter(each.outcome.value for each in recorder.history.operations if each.writes)
        reads = sum(not each.writes for each in recorder.history.operations)
        told = ", ".join(f"{number} {outcome}" for outcome, number in sorted(outcomes.items()))
        say(f"{recorder.now():.0f} s: {reads} reads; writes: {told}; {sum(tally.fired.values())} faults")


async def _last_words(place: Field, town: Town, recorder: Recorder) -> None:
    """Each repository is read once more on every node; one that is deleted is created, so that its history is shown."""
    client = Client("last", {number: node.url for number, node in place.nodes.items()}, recorder)
    try:
        for count, repository in enumerate(town.all):
            for attempt in range(30):
                node = NODES[(count + attempt) % len(NODES)]
                read = await client.read(node, repository.name)
                if read.outcome is Outcome.COMMITTED and read.value is not None:
                    break
                if read.outcome is Outcome.COMMITTED:
                    await client.create(node, repository.name)
                else:
                    await asyncio.sleep(0.5)
        for repository in town.all:
            for node in NODES:
                await client.read(node, repository.name)
    finally:
        await client.close()


# ---------------------------------------------------------------- judgement


def _count(summary: Summary, recorder: Recorder, tally: Tally, kinds: Sequence[Any]) -> None:
    operations = recorder.history.operations
    writes = Counter(each.outcome for each in operations if each.writes)
    summary.attempts = sum(writes.values())
    summary.acknowledged = writes[Outcome.COMMITTED]
    summary.aborted = writes[Outcome.ABORTED]
    summary.rejected = writes[Outcome.REJECTED]
    summary.unknown = writes[Outcome.UNKNOWN]
    summary.unsent = writes[Outcome.UNSENT]
    strong = [each for each in operations if each.kind is Kind.READ]
    summary.reads = sum(each.outcome is Outcome.COMMITTED for each in strong)
    summary.reads_failed = len(strong) - summary.reads
    summary.local_reads = sum(each.kind is Kind.LOCAL_READ and each.outcome is Outcome.COMMITTED for each in operations)
    tried = summary.attempts - summary.rejected - summary.unsent
    summary.write_availability = round(summary.acknowledged / tried, 4) if tried else 0.0
    asked = sum(each.outcome is not Outcome.UNSENT for each in strong)
    summary.read_availability = round(summary.reads / asked, 4) if asked else 0.0
    summary.faults = {
        kind.name: {"tried": tally.tried[kind.name], "fired": tally.fired[kind.name], "effect": tally.effect[kind.name]}
        for kind in kinds
    }
    summary.bad += tally.broken
    summary.bad += [f"fault {name} never fired" for name in tally.silent(kinds)]
    summary.odd_answers = len(recorder.odd)
    summary.bad += [f"odd answer: {each}" for each in recorder.odd[:20]]


def _judge(summary: Summary, wish: Wish, recorder: Recorder, seen: replicas.Look, unsettled: Sequence[str]) -> None:
    by_repository = recorder.history.by_repository()
    summary.repositories = len(by_repository)
    violations: list[Violation] = []
    for name, operations in by_repository.items():
        histories = {number: each.changes for number, each in seen.replicas.get(name, {}).items()}
        violations += check_chains(operations, histories)
        finding = check(RepositoryModel(), calls_of(operations), wish.configurations_max)
        summary.configurations_most = max(summary.configurations_most, finding.configurations)
        summary.non_linearizable += finding.verdict is Verdict.NOT_LINEARIZABLE
        summary.undecided += finding.verdict is Verdict.UNDECIDED
        if finding.verdict is not Verdict.LINEARIZABLE:
            summary.bad.append(f"{name}: {explained(finding)}")
    counted = Counter(each.fault for each in violations)
    summary.divergent = counted[Fault.DIVERGENT] + len(seen.unequal)
    summary.lost = sum(number for fault, number in counted.items() if fault is not Fault.DIVERGENT)
    summary.corrupt = len(seen.corrupt)
    summary.unsettled = len(unsettled)
    summary.certificates, summary.certificates_missing = seen.certificates, seen.certificates_missing
    summary.objects_read = seen.objects
    summary.bad += [*map(str, violations), *seen.unequal, *seen.corrupt, *unsettled]
    if not summary.acknowledged or not summary.reads:
        summary.bad.append("nothing was acknowledged, or nothing read: this run shows nothing")


def explained(finding: Finding[Operation]) -> str:
    """For whoever has to understand it."""
    if finding.stuck is None:
        return finding.verdict.value
    lines = [f"{finding.verdict.value}: {finding.stuck.action} cannot be explained"]
    lines += [f"  could be: {state}" for state in finding.states[:5]]
    lines += [f"  under way: {call.action}" for call in finding.pending[-15:]]
    return "\n".join(lines)


def _git_commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def new_folder() -> Path:
    """For the data of one run."""
    return Path(tempfile.mkdtemp(prefix="nemesis-", dir="/tmp"))


def write(summary: Summary, file: Path) -> None:
    file.write_text(json.dumps(summary.json(), indent=2) + "\n")
