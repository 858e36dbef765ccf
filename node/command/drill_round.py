"""One round of a drill: pushes, a fault, its end, and how long everything took.

Two lanes push all the while: one through the node that is hit, one in turn through the others, as clients behind a load
balancer that has noticed. *Availability* is that of the second, from the moment of the fault until the node is current again:
acknowledged pushes of all that were begun. What becomes of the first tells of doubts: its clients lose their answers.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

from node.command.client import NodeSilent, get
from node.command.drill_doubts import Doubt, Doubts
from node.command.drill_load import Lane
from node.command.drill_push import Client, Fate, Pushed
from node.command.drill_targets import Fault, Target
from node.command.output import CommandError

BEFORE_S = 1.0
AFTER_S = 1.0
POLL_S = 0.05
FIRST_PUSH_TIMEOUT_S = 15.0
CURRENT_TIMEOUT_S = 120.0
EQUAL_TIMEOUT_S = 30.0
PUSH_TIMEOUT_S = 10.0
FAILURES_MAX = 5


@dataclass(frozen=True, slots=True)
class Limits:
    """What passes. ``deadline_s`` is the cluster's ``prepare_timeout_s``."""

    deadline_s: float = 2.0
    current_s: float = 30.0
    availability: float = 0.99

    @property
    def settled_s(self) -> float:
        """Two deadlines: for the first push after a fault, and for what it left in doubt."""
        return 2 * self.deadline_s


@dataclass(slots=True)
class Round:
    """What was seen. Times in seconds; ``None``: it did not happen in time, or there was nothing to be seen."""

    kind: str
    node: str
    attempts: int = 0
    acknowledged: int = 0
    unknown: int = 0
    refused: int = 0
    failures: list[str] = field(default_factory=list)
    """Why pushes through the others were not acknowledged: the first few, in the nodes' words."""
    through_it: dict[str, int] = field(default_factory=dict)
    """Pushes through the node that was hit, by what became of them; not counted above."""
    first_push_s: float | None = None
    """From the fault to the first acknowledgement of a push that was begun after it, through another node."""
    serves_s: float | None = None
    """From the end of the fault being asked for until that was done; of a killed node: until it serves."""
    current_s: float | None = None
    """From the end of the fault being asked for until the node had applied all that was committed."""
    doubts: list[Doubt] = field(default_factory=list)
    pushed: list[Pushed] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def availability(self) -> float | None:
        return self.acknowledged / self.attempts if self.attempts else None

    @property
    def in_doubt_s(self) -> float | None:
        """The longest."""
        return max((doubt.seconds for doubt in self.doubts if doubt.seconds is not None), default=None)

    @property
    def ok(self) -> bool:
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        def ms(seconds: float | None) -> float | None:
            return None if seconds is None else round(seconds * 1000, 1)

        return {
            "fault": self.kind,
            "node": self.node,
            "ok": self.ok,
            "problems": self.problems,
            "attempts": self.attempts,
            "acknowledged": self.acknowledged,
            "unknown": self.unknown,
            "refused": self.refused,
            "availability": None if self.availability is None else round(self.availability, 5),
            "failures": self.failures,
            "through_the_node": self.through_it,
            "first_push_ms": ms(self.first_push_s),
            "serves_ms": ms(self.serves_s),
            "current_ms": ms(self.current_s),
            "in_doubt": [
                {"node": d.pushed.node, "transaction": d.pushed.txn, "outcome": d.outcome or None, "ms": ms(d.seconds)}
                for d in self.doubts
            ],
        }


def run_round(
    fault: Fault,
    others: Sequence[Target],
    repository: str,
    branch: str,
    *,
    hold_s: float,
    limits: Limits,
    say: Callable[[str], None],
    undoing: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Round:
    """Whatever happens, the fault has ended when this returns or raises; ``undoing`` keeps interrupts away from that."""
    seen = Round(fault.kind, fault.target.id)
    hit = fault.target
    doubts = Doubts(others, repository, hit.id if fault.kind == "kill" else "")

    def told(pushed: Pushed) -> None:
        if pushed.fate is Fate.UNKNOWN:
            doubts.add(pushed)

    beside = Lane([_client(target, repository) for target in others], f"{branch}-others", told=told)
    through = Lane([_client(hit, repository)], f"{branch}-{hit.id}", told=told)
    lanes = (beside, through)
    try:
        for thread in (*lanes, doubts):
            thread.start()
        _wait(lambda: all(lane.acknowledged() for lane in lanes), FIRST_PUSH_TIMEOUT_S, "no push gets through before the fault")
        time.sleep(BEFORE_S)
        fault_at = time.monotonic()
        try:
            fault.begin()
            say(f"{hit.id}: {_DONE[fault.kind]}, pushes go on for {hold_s:g} s")
            time.sleep(hold_s)
        finally:
            with undoing():
                ended_at = time.monotonic()
                fault.end()
        seen.serves_s = time.monotonic() - ended_at
        current_at = _until_current(hit, others, repository)
        seen.current_s = None if current_at is None else current_at - ended_at
        time.sleep(AFTER_S)
    except BaseException:
        doubts.end()
        raise
    finally:
        for lane in lanes:
            lane.end()
    seen.pushed = [pushed for lane in lanes for pushed in lane.stop()]
    equal = all_equal((*others, hit), repository)
    seen.doubts = doubts.close(equal)
    until = current_at or time.monotonic()
    _count(seen, beside.pushed, through.pushed, fault_at, until)
    first = next(iter(beside.acknowledged(fault_at)), None)
    seen.first_push_s = None if first is None else first.ended_at - fault_at
    seen.problems = list(_judge(seen, limits, ended_at, equal))
    return seen


_DONE = {"kill": "killed", "pause": "paused", "partition": "cut off from its peers"}


def _client(target: Target, repository: str) -> Client:
    return Client(target.id, target.url, repository, PUSH_TIMEOUT_S)


def _count(seen: Round, beside: Sequence[Pushed], through: Sequence[Pushed], fault_at: float, until: float) -> None:
    during = [each for each in beside if each.ended_at >= fault_at and each.began_at <= until]
    seen.attempts = len(during)
    seen.acknowledged = sum(each.fate is Fate.ACKNOWLEDGED for each in during)
    seen.unknown = sum(each.fate is Fate.UNKNOWN for each in during)
    seen.refused = seen.attempts - seen.acknowledged - seen.unknown
    failed = [each for each in during if each.fate is not Fate.ACKNOWLEDGED]
    seen.failures = [f"{each.node}, after {each.took_s:.2f} s: {each.reason}" for each in failed[:FAILURES_MAX]]
    hit = [each.fate.value for each in through if each.ended_at >= fault_at]
    seen.through_it = {fate.value: hit.count(fate.value) for fate in Fate if fate.value in hit}


def _judge(seen: Round, limits: Limits, ended_at: float, equal: bool) -> Sequence[str]:
    problems = []
    if seen.availability is None or seen.availability < limits.availability:
        problems.append(f"{seen.acknowledged} of {seen.attempts} pushes through the other nodes were acknowledged")
    if seen.first_push_s is None or seen.first_push_s > limits.settled_s:
        problems.append(f"no push within {limits.settled_s:g} s of the fault")
    if seen.current_s is None or seen.current_s > limits.current_s:
        problems.append(f"{seen.node} was not current within {limits.current_s:g} s")
    if not equal:
        problems.append(f"the replicas are not equal {EQUAL_TIMEOUT_S:g} s after the last push")
    for doubt in seen.doubts:
        # What a paused or isolated node had under way, it alone knows: its time counts from when it was back.
        alone = doubt.pushed.node == seen.node and seen.kind != "kill"
        since = max(doubt.pushed.ended_at, ended_at) if alone else doubt.pushed.ended_at
        if doubt.settled_at is None:
            problems.append(f"a push through {doubt.pushed.node} is not settled (transaction {doubt.pushed.txn or 'not told'})")
        elif doubt.settled_at - since > limits.settled_s and doubt.outcome != "never committed":
            problems.append(f"a push through {doubt.pushed.node} was in doubt for {doubt.settled_at - since:.1f} s")
    return problems


def _until_current(hit: Target, others: Sequence[Target], repository: str) -> float | None:
    """The moment at which ``hit`` had applied what another node had just before; pushes go on."""
    give_up_at = time.monotonic() + CURRENT_TIMEOUT_S
    while time.monotonic() < give_up_at:
        wanted = max((version_of(other, repository) or 0 for other in others), default=0)
        there = version_of(hit, repository)
        if wanted and there is not None and there >= wanted:
            return time.monotonic()
        time.sleep(POLL_S)
    return None


def version_of(target: Target, repository: str) -> int | None:
    """What the node itself has applied; ``None`` if it does not say."""
    with suppress(NodeSilent):
        answer = get(target.url, f"/repos/{repository}", 5.0, local=True)
        return int(answer.body["version"]) if answer.ok else None
    return None


def all_equal(targets: Sequence[Target], repository: str, timeout_s: float = EQUAL_TIMEOUT_S) -> bool:
    """Whether every replica becomes current, with one digest, none in doubt."""
    give_up_at = time.monotonic() + timeout_s
    while True:
        replicas: list[dict[str, Any]] = []
        with suppress(NodeSilent):
            answer = get(targets[0].url, f"/repos/{repository}/replicas", 5.0, local=True)
            replicas = answer.body.get("replicas", []) if answer.ok else []
        states = {(each.get("state"), each.get("digest")) for each in replicas}
        if len(replicas) == len(targets) and len(states) == 1 and next(iter(states))[0] == "current":
            return True
        if time.monotonic() >= give_up_at:
            return False
        time.sleep(POLL_S)


def _wait(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    give_up_at = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= give_up_at:
            raise CommandError(what)
        time.sleep(POLL_S)
