"""``gitquorum drill``: hit one node of a running cluster at a time, while pushes go on, and say what came of it.

Made for staging. It starts only when all is well, asks first, has a repository of its own (removed at the end) and touches no
other, hits one node at a time for a bounded time, and undoes what it did whatever happens: Ctrl-C and SIGTERM too. Only if
this command itself is killed (SIGKILL) may a node stay paused or dead; ``gitquorum start`` and ``kill -CONT`` mend that, and a
partition ends by itself.

    drill_targets  whom, and with what         drill_push        one push by hand
    drill_round    one fault, and its figures  drill_load        one push after another
    drill_doubts   what is in doubt            drill_proof       every acknowledged push is on every node
    drill_report   the table at the end        drill_interrupts  Ctrl-C, but never while something is undone
"""

import fcntl
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from node.command.client import NodeSilent, get, request
from node.command.drill_interrupts import Interrupts
from node.command.drill_proof import prove
from node.command.drill_push import Pushed
from node.command.drill_round import Limits, Round, all_equal, run_round
from node.command.drill_targets import KINDS, Fault, Kill, Partition, Pause, Target, token_of, why_not
from node.command.output import CommandError, Exit, Output
from node.command.state import Home

OWNER = "gitquorum-drill"
WELL_TIMEOUT_S = 60.0
ROUNDS_MAX = 100
HOLD_S_MAX = 50.0
"""Shorter than a partition lasts at most."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What was asked for. ``rounds``: how often each fault is made, each time on another node; ``None``: once on each node."""

    rounds: int | None = None
    kinds: tuple[str, ...] = ()
    """Empty: all that are possible here."""
    hold_s: float = 5.0
    limits: Limits = field(default_factory=Limits)

    @classmethod
    def of(cls, rounds: int | None, only: str | None, hold_s: float, limits: Limits) -> "Plan":
        """Raises ``CommandError`` (USAGE)."""
        kinds = tuple(dict.fromkeys(word.strip() for word in only.split(",") if word.strip())) if only is not None else ()
        if unknown := [kind for kind in kinds if kind not in KINDS]:
            raise CommandError(f"--only takes {', '.join(KINDS)}, not {unknown[0]!r}", Exit.USAGE)
        if rounds is not None and not 0 < rounds <= ROUNDS_MAX:
            raise CommandError(f"--rounds is a number from 1 to {ROUNDS_MAX}", Exit.USAGE)
        if not 0 < hold_s <= HOLD_S_MAX:
            raise CommandError(f"--hold is a number of seconds up to {HOLD_S_MAX:g}", Exit.USAGE)
        return cls(rounds, kinds, hold_s, limits)


def targets_of(home: Home, urls: Sequence[str], token: str) -> list[Target]:
    """The nodes at ``urls``, or else those of the cluster in ``home``."""
    if not urls:
        return [Target(node.id, node.url, node, token or token_of(node)) for node in home.load().nodes]
    return [Target(_id_at(url.rstrip("/")), url.rstrip("/"), None, token) for url in urls]


def drill(
    home: Home, targets: Sequence[Target], plan: Plan, output: Output, confirm: Callable[[str], bool]
) -> tuple[dict[str, Any], int]:
    """Runs it; returns what was seen and the exit code.

    Raises:
        CommandError: nothing was done (not well, not confirmed, nothing possible), or it broke off, and everything is undone.
    """
    _check_well(targets, 0.0)
    kinds, skipped = _possible(targets, plan.kinds)
    rounds = plan.rounds if plan.rounds is not None else len(targets)
    for kind, reason in skipped.items():
        output.warning(f"no {kind}: {reason}")
    about_s = len(kinds) * rounds * (plan.hold_s + 10)
    names = ", ".join(target.id for target in targets)
    if not confirm(
        f"{', '.join(kinds)}: {rounds} times each, one node of {names} at a time, for about {about_s:.0f} s. Go on?"
    ):
        raise CommandError("nothing was done")
    with ExitStack() as stack:
        stack.enter_context(_alone(home))
        interrupts = stack.enter_context(Interrupts())
        try:
            return _run(home, targets, plan, kinds, skipped, rounds, output, interrupts)
        except KeyboardInterrupt:
            raise CommandError("interrupted; what was done is undone") from None


def _run(
    home: Home,
    targets: Sequence[Target],
    plan: Plan,
    kinds: Sequence[str],
    skipped: dict[str, str],
    rounds: int,
    output: Output,
    interrupts: Interrupts,
) -> tuple[dict[str, Any], int]:
    began_at = time.monotonic()
    repository = f"{OWNER}/{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    _create(targets[0], repository)
    done: list[Round] = []
    proof: dict[str, Any] = {"problems": []}
    pushed: list[Pushed] = []
    try:
        numbers = count(1)
        for each in range(rounds):
            for shift, kind in enumerate(kinds):
                hit = targets[(each + shift) % len(targets)]
                others = [target for target in targets if target is not hit]
                branch = f"round-{next(numbers)}"
                fault = _fault(kind, home, hit, plan.hold_s, output)
                output.progress(f"{branch}: {kind} {hit.id}")
                seen = run_round(
                    fault,
                    others,
                    repository,
                    branch,
                    hold_s=plan.hold_s,
                    limits=plan.limits,
                    say=output.progress,
                    undoing=interrupts.held,
                )
                done.append(seen)
                pushed += seen.pushed
                for problem in seen.problems:
                    output.warning(f"{branch}: {problem}")
                _check_well(targets, WELL_TIMEOUT_S)
        all_equal(targets, repository)
        with output.waiting("comparing the replicas with stock git …"):
            proof = prove(targets, repository, pushed)
    finally:
        # What the proof found is worth a look; anything else may go.
        removed = not proof["problems"] and _remove(targets, repository)
    ok = all(seen.ok for seen in done) and not proof["problems"]
    result = {
        "ok": ok,
        "repository": repository,
        "removed": removed,
        "nodes": [target.id for target in targets],
        "limits": {
            "first_push_ms": plan.limits.settled_s * 1000,
            "in_doubt_ms": plan.limits.settled_s * 1000,
            "current_ms": plan.limits.current_s * 1000,
            "availability": plan.limits.availability,
        },
        "left_out": skipped,
        "rounds": [seen.as_dict() for seen in done],
        "proof": proof,
        "took_s": round(time.monotonic() - began_at, 1),
    }
    return result, Exit.OK if ok else Exit.FAILED


# ---------------------------------------------------------------- before and after


def _check_well(targets: Sequence[Target], timeout_s: float) -> None:
    """Raises ``CommandError`` unless every node can write and sees every other, within ``timeout_s``."""
    if len(targets) < 3:
        raise CommandError("a drill needs a cluster of three nodes or more: fewer survive none", Exit.USAGE)
    give_up_at = time.monotonic() + timeout_s
    while problems := [problem for target in targets if (problem := _unwell(target, len(targets)))]:
        if time.monotonic() >= give_up_at:
            word = "not everything is well" if not timeout_s else f"not everything is well {timeout_s:.0f} s after a round"
            raise CommandError(f"{word}: {'; '.join(problems)}; look at: gitquorum status", Exit.UNAVAILABLE)
        time.sleep(0.2)


def _unwell(target: Target, nodes: int) -> str:
    try:
        ready = get(target.url, "/readyz?role=write", 5.0)
        health = get(target.url, "/health", 5.0).body
    except NodeSilent as error:
        return f"{target.id}: {error}"
    if not ready.ok:
        return f"{target.id}: {ready.reason}"
    away = [peer["node_id"] for peer in health.get("peers", []) if peer.get("state") != "alive"]
    if away:
        return f"{target.id} misses {', '.join(away)}"
    if health.get("problem"):
        return f"{target.id}: {health['problem']}"
    others = len(health.get("peers", []))
    return "" if others + 1 == nodes else f"{target.id} has {others} peers, and {nodes} nodes were named"


def _possible(targets: Sequence[Target], wanted: tuple[str, ...]) -> tuple[list[str], dict[str, str]]:
    """(faults that can be made on every node, why the others cannot). One that was asked for by name must be possible."""
    kinds, skipped = [], {}
    for kind in wanted or KINDS:
        reason = next((reason for target in targets if (reason := why_not(kind, target))), "")
        if not reason:
            kinds.append(kind)
        elif wanted:
            raise CommandError(f"no {kind}: {reason}", Exit.USAGE)
        else:
            skipped[kind] = reason
    if not kinds:
        raise CommandError(f"nothing can be drilled here: {'; '.join(skipped.values())}", Exit.USAGE)
    return kinds, skipped


def _fault(kind: str, home: Home, target: Target, hold_s: float, output: Output) -> Fault:
    match kind:
        case "kill":
            return Kill(home, target, output)
        case "pause":
            return Pause(target)
        case _:
            return Partition(target, hold_s)


def _id_at(url: str) -> str:
    try:
        health = get(url, "/health", 5.0)
    except NodeSilent as error:
        raise CommandError(str(error), Exit.UNAVAILABLE) from error
    if not health.ok or "node_id" not in health.body:
        raise CommandError(f"{url} is no node of a cluster: {health.reason}", Exit.USAGE)
    return str(health.body["node_id"])


def _create(target: Target, repository: str) -> None:
    answer = request(target.url, "POST", "/repos", body={"repo_id": repository})
    if answer.status != 201:
        raise CommandError(f"{repository} was not created: {answer.reason}", Exit.UNAVAILABLE)


def _remove(targets: Sequence[Target], repository: str) -> bool:
    for target in targets:
        try:
            if request(target.url, "DELETE", f"/repos/{repository}").ok:
                return True
        except NodeSilent:
            continue
    return False


@contextmanager
def _alone(home: Home) -> Iterator[None]:
    """One drill at a time in one folder; one that was given URLs has no folder."""
    if not home.folder.is_dir():
        yield
        return
    with open(home.folder / "drill.lock", "w") as file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CommandError(f"another drill is at work in {home.folder}", Exit.UNAVAILABLE) from None
        yield


def limits_of(deadline_s: float, current_s: float) -> Limits:
    """Those of a cluster with this ``prepare_timeout_s``."""
    return Limits(deadline_s=deadline_s, current_s=current_s)
