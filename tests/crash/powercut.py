"""Power cuts: a node on an ext4 of its own takes pushes, the power goes, it starts again: what it acknowledged must be there.

    python -m tests.crash.powercut --cuts 500 --seed 7 [--json]

One disk goes through all cuts, so what an earlier life acknowledged is looked for again after every one. Pushes are small and
large, into three repositories at once; repositories are deleted and made again. When the cut comes is chance, from the seed.
With ``LD_PRELOAD`` of libeatmydata (fsync does nothing) it has to lose something: else it could not see a missing fsync.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import os
import random
import select
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from node.protocol.ids import RefName
from node.protocol.names import RepositoryName
from tests.crash import checks
from tests.crash.ext4 import Ext4, release_stale, why_not
from tests.crash.subject import Subject, hurry
from tests.crash.values import A, packed

REPOSITORIES = tuple(RepositoryName("alice", f"r{number}") for number in range(3))
BRANCHES = 4
SMALL_PACKS, LARGE_PACKS = 24, 4
STEPS_MAX, DELAY_S_MAX = 24, 0.06
"""The cut comes so long after so many requests were begun or answered, each by chance: on a slow machine as on a fast one."""
LIFE_S_MAX = 8.0
PATIENCE_S = 60.0
PREFIX = "gitquorum-power-"


@dataclass
class Report:
    cuts: int = 0
    seed: int = 0
    seconds: float = 0.0
    acknowledged: Counter[str] = field(default_factory=Counter)
    """By kind: what was acknowledged, over all lives."""
    in_flight: int = 0
    """Requests that were under way at a cut and may have gone either way."""
    survived: int = 0
    """… of which so many were there afterwards."""
    busy_cuts: int = 0
    """Cuts at which something was under way."""
    wrong: list[str] = field(default_factory=list)


class Memory:
    """What clients know: per repository what was acknowledged, and what is under way."""

    def __init__(self) -> None:
        self.exists: dict[str, bool] = {str(name): False for name in REPOSITORIES}
        self.refs: dict[str, dict[str, str]] = {str(name): {} for name in REPOSITORIES}
        self.digests: dict[str, dict[int, str]] = {str(name): {} for name in REPOSITORIES}
        self.asked: dict[str, dict[str, Any]] = {}
        """At most one request under way for each repository."""

    def hear(self, message: dict[str, Any], report: Report) -> None:
        repository = message.get("repository", "")
        if message["kind"] == "asked":
            self.asked[repository] = message
        elif message["kind"] == "done":
            asked = self.asked.pop(repository)
            report.acknowledged[asked["what"]] += 1
            self.digests[repository][message["version"]] = message["digest"]
            self.take(asked)
        elif message["kind"] == "refused":
            self.asked.pop(repository)

    def take(self, asked: dict[str, Any]) -> None:
        repository = asked["repository"]
        if asked["what"] in ("create", "delete"):
            self.exists[repository] = asked["what"] == "create"
            self.refs[repository] = {}
        else:
            self.refs[repository][asked["ref"]] = asked["oid"]


class Cuts:
    """One disk and its lives."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.chance = random.Random(seed)
        self.report = Report(seed=seed)
        self.memory = Memory()
        self.packs = [packed(folder / "packs", f"small-{n}", size=1500)[0] for n in range(SMALL_PACKS)]
        self.packs += [packed(folder / "packs", f"large-{n}", size=120_000)[0] for n in range(LARGE_PACKS)]
        self.disk = Ext4(folder)
        self.data = self.disk.path / "data"
        self.life = 0

    def run(self, cuts: int) -> Report:
        began = time.monotonic()
        with self.disk:
            for _ in range(cuts):
                self.one()
                if self.report.cuts % 50 == 0:
                    sys.stderr.write(f"{self.report.cuts} cuts, {sum(self.report.acknowledged.values())} acknowledged\n")
                if self.report.wrong:
                    break
        self.report.seconds = round(time.monotonic() - began, 1)
        return self.report

    def one(self) -> None:
        self.life += 1
        self._live_and_die()
        self.disk.unmount()
        self.disk.mount()
        self.life += 1
        told = self._child(self._look, None)
        found = next((one for one in told if one["kind"] == "found"), None)
        problems = [one["error"] for one in told if one["kind"] == "broke"]
        if found is None:
            problems.append(f"the node does not start again: {told[-1:]}")
        else:
            problems += [*found["problems"], *self._compare(found)]
        self.report.cuts += 1
        self.report.wrong += [f"seed {self.report.seed} cut {self.report.cuts}: {problem}" for problem in problems]

    # ------------------------------------------------------------ a life

    def _live_and_die(self) -> None:
        """Pushes until the power goes."""
        cut_at = self.chance.randrange(1, STEPS_MAX), self.chance.random() * DELAY_S_MAX
        seed = self.chance.random()
        told = self._child(lambda tell: self._push(tell, seed), cut_at)
        for message in told:
            self.memory.hear(message, self.report)
        self.report.busy_cuts += bool(self.memory.asked)
        self.report.in_flight += len(self.memory.asked)

    async def _push(self, tell: Callable[..., None], seed: float) -> None:
        node = Subject(self.data, (A,), lambda kind, **facts: None, None, [], f"life {self.life}")
        await node.start()
        tell("started")
        async with asyncio.TaskGroup() as group:
            for name in REPOSITORIES:
                group.create_task(self._writer(node, tell, name, random.Random(f"{seed} {name}")))

    async def _writer(self, node: Subject, tell: Callable[..., None], name: RepositoryName, chance: random.Random) -> None:
        """One client; ends when its node refuses, as it must once the disk is gone."""
        key = str(name)
        while True:
            exists = (await node.runtime._registry.get(name.key)).register.exists
            told: list[dict[str, Any]] = []
            node_tell = lambda kind, told=told, **facts: told.append({"kind": kind, **facts})  # noqa: E731
            if not exists or chance.random() < 0.04:
                tell("asked", repository=key, what="delete" if exists else "create")
                outcome = await (node.delete(name, node_tell) if exists else node.create(name, node_tell))
            else:
                ref = RefName(f"refs/heads/b{chance.randrange(BRANCHES)}")
                large = chance.random() < 0.1
                pack = chance.choice(self.packs[SMALL_PACKS:] if large else self.packs[:SMALL_PACKS])
                tell("asked", repository=key, what="large push" if large else "small push", ref=ref, oid=pack.tip)
                outcome = await node.push(ref, pack, name, node_tell)
            committed = next((one for one in told if one["kind"] == "committed"), None)
            if outcome and committed:
                tell("done", repository=key, version=committed["version"], digest=committed["digest"])
            elif any(one["kind"] in ("rejected", "no") for one in told):
                tell("refused", repository=key)
            else:
                return  # unknown, or aborted by a disk that is gone: what became of it is seen after the next start

    def _child(
        self, function: Callable[[Callable[..., None]], Any], cut_after: tuple[int, float] | None
    ) -> list[dict[str, Any]]:
        """In a process of its own; with ``cut_after``, until the power goes: so long after so many things were said."""
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            ours.close()
            _in_child(function, theirs)
        theirs.close()
        told: list[dict[str, Any]] = []
        held = b""
        cut_at: float | None = None
        give_up_at = time.monotonic() + PATIENCE_S
        try:
            while True:
                now = time.monotonic()
                if (cut_at is not None and now >= cut_at) or now > give_up_at:
                    break
                ready, _, _ = select.select([ours], [], [], (cut_at or give_up_at) - now)
                if not ready:
                    continue
                data = ours.recv(65536)
                if not data:
                    break
                *lines, held = (held + data).split(b"\n")
                told += [json.loads(line) for line in lines]
                if cut_after is not None and told and cut_at is None:
                    give_up_at = min(give_up_at, time.monotonic() + LIFE_S_MAX)
                if cut_after is not None and cut_at is None and len(told) > cut_after[0]:
                    cut_at = time.monotonic() + cut_after[1]
            if cut_after is not None:
                self.disk.cut()
                # What was said before the power went was said: it is read before the process is ended.
                ours.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    while data := ours.recv(65536):
                        held += data
                told += [json.loads(line) for line in held.split(b"\n")[:-1]]
        finally:
            _end(pid)
            ours.close()
        return told

    # ------------------------------------------------------------ after it

    async def _look(self, tell: Callable[..., None]) -> None:
        node = Subject(self.data, (A,), lambda kind, **facts: None, None, [], f"life {self.life}")
        await node.start()
        await node.settle()
        problems = await checks.leftovers(node) + await checks.visible(node, [])
        found: dict[str, Any] = {}
        for name in REPOSITORIES:
            # A doubt of the last life is settled by the first change of this one: a branch that nobody looks at.
            replica = await node.runtime._registry.get(name.key)
            if replica.in_doubt:
                replica.settle(replica.register.position.version)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(10):
                        while replica.in_doubt:  # noqa: ASYNC110
                            await asyncio.sleep(0.01)
                if replica.in_doubt:
                    problems.append(f"{name} stays in doubt")
            register = replica.register
            entries = []
            while page := await node.journal.history(name.key, len(entries), 256):
                entries += page
            found[str(name)] = {
                "exists": register.exists,
                "refs": {ref: value.oid for ref, value in register.refs.items()},
                "digests": [entry.change.position.digest for entry in entries],
            }
        await node.settle()
        problems += await checks.visible(node, [])
        await node.stop()
        tell("found", problems=problems, repositories=found)

    def _compare(self, found: dict[str, Any]) -> list[str]:
        """With what clients were told; what was under way is settled now, one way or the other."""
        wrong = []
        for name, there in found["repositories"].items():
            for version, digest in self.memory.digests[name].items():
                if there["digests"][version - 1 : version] != [digest]:
                    wrong.append(f"{name} version {version} was acknowledged and is lost")
            asked = self.memory.asked.pop(name, None)
            if (there["exists"], there["refs"]) != self._known(name) and asked is not None:
                self.memory.take(asked)
                self.report.survived += 1
            if (there["exists"], there["refs"]) != self._known(name):
                wrong.append(f"{name} is {there['exists'], there['refs']}, acknowledged was {self._known(name)}")
        return wrong

    def _known(self, name: str) -> tuple[bool, dict[str, str]]:
        return self.memory.exists[name], self.memory.refs[name]


def _in_child(function: Callable[[Callable[..., None]], Any], link: socket.socket) -> None:
    """Never returns."""
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def tell(kind: str, **facts: Any) -> None:
        link.sendall(json.dumps({"kind": kind, **facts}).encode() + b"\n")

    try:
        asyncio.run(function(tell))
    except BaseException as error:
        with contextlib.suppress(OSError):
            tell("broke", error=repr(error))
    finally:
        os._exit(0)


def _end(pid: int) -> None:
    """The process, and git's: nothing may hold the disk."""
    for other in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(other) == pid and other != pid:
                os.kill(other, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="tests.crash.powercut", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--cuts", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    hurry()
    if why := why_not():
        sys.stderr.write(f"cannot be run here: {why}\n")
        return 2
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the disk is released on that path too
    release_stale(PREFIX)
    base = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-", dir=base) as folder:
        report = Cuts(Path(folder), asked.seed).run(asked.cuts)
    if asked.json:
        sys.stdout.write(json.dumps(vars(report)) + "\n")
    else:
        known = ", ".join(f"{number} × {what}" for what, number in sorted(report.acknowledged.items()))
        sys.stdout.write(f"{report.cuts} cuts (seed {report.seed}) in {report.seconds} s; acknowledged: {known}\n")
        sys.stdout.write(f"under way at a cut: {report.in_flight}, of which {report.survived} were there afterwards\n")
        for wrong in report.wrong:
            sys.stdout.write(f"WRONG {wrong}\n")
    return 1 if report.wrong else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
