"""Flip a byte, anywhere in what a node stores; it must be found and repaired, without an operator, and nobody may serve it.

    python -m tests.repair.flips --count 200 --seed 1 [--json]

Three real nodes with several repositories. Each round flips one random byte (to another value) at a random place of a random
file of one node, lets that node look (``POST /scrub``), and compares: refs, HEAD and ``git fsck --strict`` of each replica,
and the rows of the journal. A journal is flipped while its node is stopped, every second time after a SIGKILL, which leaves its
last writes in the ``-wal`` file; and every second one of those comes right after a push, so that the journal holds small packs,
and changes that are not yet synced or applied. What a flip can come to:

    repaired     found, and everything is as before
    rejoined     an acceptor record or SQLite's own pages were hit: the node took it for amnesia, learned all again (R4)
    not started  the same, found at start, where the node refuses to start: not repaired yet, put back by hand
    harmless     nothing was found and *nothing was changed*: every row, ref and object reads as before (free pages, padding,
                 the old value of a ref that a loose one overrides). Not counted among the flips that matter
    missed       nothing was found and something was changed; or it was found and is not as before. Fails the run

The rounds go on until ``count`` flips mattered.
"""

import argparse
import json
import random
import shutil
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.cluster.harness import NODES, Cluster, Work, git, wait

FAST = {"GITQUORUM_SCRUB_BYTES_PER_S": "1000000000"}
KINDS = {"journal": 5, "pack": 3, "idx": 3, "loose ref": 3, "packed-refs": 3, "HEAD": 1, "config": 1, "multi-pack-index": 1}
"""How often each kind of file is chosen, against the others."""

DROPPED_BY_MARKS = ("inline_packs", "pack_uses")

LOOKED_S = 60.0
BACK_S = 60.0


@dataclass
class Flip:
    """One round."""

    number: int
    node: int
    kind: str
    file: str
    offset: int
    before: int
    after: int
    changed: list[str] = field(default_factory=list)
    """Of a journal: which rows read differently, before the node starts."""
    outcome: str = ""
    found: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Flips:
    """A cluster that is flipped."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self.cluster = cluster
        self.chance = random.Random(seed)
        self.names: list[str] = []
        self.flips: list[Flip] = []
        self.incarnations: dict[int, int] = {}
        self.unsynced = 0
        """Journals that were flipped right after a push."""

    # ------------------------------------------------------------ the cluster

    def prepare(self, folder: Path) -> None:
        """Small and large packs, loose and packed refs, annotated tags, a deleted repository."""
        cluster = self.cluster
        self.folder = folder
        cluster.up()
        for label, commits, size, branches in (("small", 6, 300, 3), ("many", 3, 500, 30), ("large", 2, 400_000, 2)):
            name = cluster.create(1, label)
            work = Work.init(folder / label)
            work.commit("first", size)
            work.git("push", "--quiet", cluster.url(1, name), "HEAD:refs/heads/main")
            for number in range(branches):
                work.git("branch", f"b{number}")
            work.git("tag", "-a", "-m", "tagged", "v1")
            work.git("push", "--quiet", cluster.url(2, name), "--all")
            work.git("push", "--quiet", cluster.url(2, name), "--tags")
            for number in range(commits):
                work.commit(f"more {number}", size)
                work.git("push", "--quiet", cluster.url(1 + number % 3, name), "HEAD:refs/heads/main")
            self.names.append(name)
        gone = cluster.create(2, "gone")
        assert cluster.cli("repo", "delete", gone, "--yes").code == 0
        for name in self.names:
            cluster.agree(name)
        time.sleep(1.5)  # until everything is synced: then the journal holds no packs any more
        for node in NODES:
            folder_ = cluster.bare(node, self.names[0])
            git("multi-pack-index", "write", cwd=folder_)

    def start(self, node: int) -> bool:
        """Whether the node starts."""
        if self.cluster.cli("start", str(node), env=FAST, ok=False, timeout_s=90).code == 0:
            return True
        with suppress(AssertionError):  # it may only be slow, or be learning everything again before it serves
            return self.cluster.pid(node) > 0
        return False

    def stop(self, node: int, *, kill: bool) -> None:
        if kill:
            self.cluster.kill(node)
            return
        import os
        import signal

        pid = self.cluster.pid(node)
        os.kill(pid, signal.SIGTERM)
        wait(lambda: not Path(f"/proc/{pid}").exists() or _zombie(pid), 40, f"node-{node} ends")

    # ------------------------------------------------------------ one flip

    def choose(self, node: int) -> tuple[str, Path] | None:
        kind = self.chance.choices(list(KINDS), list(KINDS.values()))[0]
        data = self.cluster.home / f"node-{node}" / "data"
        if kind == "journal":
            return kind, data / ".journal" / "journal.sqlite"
        patterns = {
            "pack": "objects/pack/*.pack",
            "idx": "objects/pack/*.idx",
            "loose ref": "refs/**/*",
            "multi-pack-index": "objects/pack/multi-pack-index",
        }
        bares = [self.cluster.bare(node, name) for name in self.names]
        files = sorted(path for bare in bares for path in bare.glob(patterns.get(kind, kind)) if path.is_file())
        return (kind, self.chance.choice(files)) if files else None

    def round(self) -> Flip | None:
        node = self.chance.choice(NODES)
        chosen = self.choose(node)
        if chosen is None:
            return None
        kind, path = chosen
        began = time.monotonic()
        flip = self._journal(node, path) if kind == "journal" else self._file(node, kind, path)
        if flip is not None:
            flip.seconds = round(time.monotonic() - began, 2)
            self.flips.append(flip)
        return flip

    def _file(self, node: int, kind: str, path: Path) -> Flip:
        """While the node runs and serves."""
        before = self.view(node)
        flip = self.flip(node, kind, path)
        changed = self.view(node) != before
        reports = self.scrub(node)
        self.judge(flip, reports, changed or self.lies(node), self.view(node) == before)
        return flip

    def _journal(self, node: int, path: Path) -> Flip:
        """While the node is down; its rows are compared by somebody else's SQLite, before and after."""
        kill = self.chance.random() < 0.5
        if kill and self.chance.random() < 0.5:
            self.push()
            self.unsynced += 1
        self.stop(node, kill=kill)
        wal = path.with_name(path.name + "-wal")
        target = wal if kill and wal.exists() and wal.stat().st_size and self.chance.random() < 0.5 else path
        with tempfile.TemporaryDirectory(prefix="r3-journal-") as kept:
            for each in (path, wal):
                if each.exists():
                    shutil.copy2(each, kept)
            before, incarnation = rows(path), self.incarnations.get(node, 1)
            flip = self.flip(node, "journal" if target is path else "journal-wal", target)
            now = rows(path)
            changed = _changed(before, now)
            flip.changed = _differences(before, now)
            if not self.start(node):
                flip.found = [self.cluster.log(node).strip().splitlines()[-1][-300:]]
                flip.outcome = "not started"
                for each in (path, wal, path.with_name(path.name + "-shm")):
                    each.unlink(missing_ok=True)
                for each in Path(kept).iterdir():
                    shutil.copy2(each, path.parent)
                assert self.start(node), "the journal as it was before starts"
                self.cluster._tainted.pop(node, None)
            else:
                self.cluster._tainted.pop(node, None)
                self.settle(flip, changed, incarnation)
        wait(self.cluster.ready, 60, "ready again")
        for name in self.names:
            self.cluster.agree(name, timeout_s=30)
        return flip

    def settle(self, flip: Flip, changed: bool, incarnation: int) -> None:
        """The node has started with what was flipped: wait until it is well, one way or the other."""
        node = flip.node
        wait(self.cluster.ready, BACK_S, "ready again")
        time.sleep(1.0)  # heartbeats: what the others know of it
        wait(self.cluster.ready, BACK_S, "ready again")
        self.scrub(node)
        # All of this life: what a vote or the node's own first look met is repaired before anybody asks.
        reports = self.cluster.get(node, "/scrub").body["reports"]
        wait(self.cluster.ready, BACK_S, "ready again")
        self.incarnations[node] = now = int(self.cluster.get(node, "/health").body["incarnation"])
        whole = self.agreed()
        if now > incarnation and whole and not self.scrub(node):
            flip.outcome = "rejoined"
            flip.found = [line for report in reports for line in report["found"]] or self.said(node)
        else:
            self.judge(flip, reports, changed, whole)

    def agreed(self) -> bool:
        """Whether all replicas become equal, in what they say and in what git reads of them."""
        try:
            for name in self.names:
                self.cluster.agree(name, timeout_s=30)
        except AssertionError:
            return False
        views = [self.view(node) for node in NODES]
        return all(view == views[0] for view in views)

    def said(self, node: int) -> list[str]:
        """Why the node rejoined, in its own words."""
        words = ("journal lost", "acceptor record lost", "rejoin")
        lines = [line for line in self.cluster.log(node).splitlines() if any(word in line for word in words)]
        return [json.loads(line).get("reason", line)[:200] for line in lines[:1]]

    def flip(self, node: int, kind: str, path: Path) -> Flip:
        """In place, as a disk does it: another byte, in the same file."""
        size = path.stat().st_size
        offset = self.chance.randrange(size)
        mode = path.stat().st_mode
        path.chmod(0o644)
        with open(path, "r+b", buffering=0) as file:
            file.seek(offset)
            (before,) = file.read(1)
            after = before ^ (1 << self.chance.randrange(8)) if self.chance.random() < 0.7 else (before + 91) % 256
            file.seek(offset)
            file.write(bytes([after]))
        path.chmod(mode)
        data = self.cluster.home / f"node-{node}" / "data"
        return Flip(len(self.flips) + 1, node, kind, str(path.relative_to(data)), offset, before, after)

    def scrub(self, node: int) -> list[dict[str, Any]]:
        """Let the node look at everything; what it found since the last time."""
        before = self.cluster.get(node, "/scrub").body["found"]
        run = self.cluster.post(node, "/scrub", {}).body["run"]

        def done() -> dict[str, Any] | None:
            state: dict[str, Any] = self.cluster.get(node, "/scrub").body
            return state if state["run"] >= run and not state["running"] else None

        state = wait(done, LOOKED_S, f"node-{node} has looked", 0.05)
        new = state["found"] - before
        reports: list[dict[str, Any]] = state["reports"]
        return reports[-new:] if new else []

    def judge(self, flip: Flip, reports: list[dict[str, Any]], changed: bool, whole: bool) -> None:
        flip.found = [line for report in reports for line in report["found"]]
        problems = [report["problem"] for report in reports if report["problem"]]
        if reports and whole and not problems and not self.scrub(flip.node):
            flip.outcome = "repaired"
        elif not reports and not changed and whole:
            flip.outcome = "harmless"
        else:
            flip.outcome = "missed"
            flip.found += problems

    # ------------------------------------------------------------ what there is

    def view(self, node: int) -> dict[str, Any]:
        """What stock git reads of every repository: refs, HEAD, and whether all of it is sound."""
        seen: dict[str, Any] = {}
        for name in self.names:
            bare = self.cluster.bare(node, name)
            refs = git("for-each-ref", "--format=%(refname) %(objectname) %(*objectname)", cwd=bare, ok=False)
            fsck = git("fsck", "--strict", "--full", "--no-dangling", cwd=bare, ok=False)
            head = git("symbolic-ref", "HEAD", cwd=bare, ok=False)
            seen[name] = (refs.code, refs.out, head.out, fsck.code, "error" in fsck.err)
        return seen

    def lies(self, node: int) -> bool:
        """Whether any replica differs from another in what git reads."""
        views = [self.view(other) for other in NODES]
        return any(view != views[0] for view in views)

    def push(self, *, settle: bool = False) -> None:
        """The cluster takes pushes all the time."""
        name = self.chance.choice(self.names)
        work = Work(self.folder / name.split("/")[0])
        work.commit("between", 300)
        work.git("push", "--quiet", self.cluster.url(self.chance.choice(NODES), name), "HEAD:refs/heads/main")
        if settle:
            self.cluster.agree(name)
            time.sleep(1.2)

    def summary(self) -> dict[str, Any]:
        by_kind: dict[str, Counter[str]] = {}
        for flip in self.flips:
            by_kind.setdefault(flip.kind, Counter())[flip.outcome] += 1
        total = Counter(flip.outcome for flip in self.flips)
        return {
            "flips": len(self.flips),
            "mattered": len(self.flips) - total["harmless"],
            "outcomes": dict(total),
            "unsynced": self.unsynced,
            "by_kind": {kind: dict(counts) for kind, counts in sorted(by_kind.items())},
            "missed": [asdict(flip) for flip in self.flips if flip.outcome not in ("repaired", "rejoined", "harmless")],
        }


NOTES = {"applied", "synced", "value_sum", "boot", "nonce", "since_ms"}
"""Columns that a crash may set back, or that each start counts up; with the sums over them."""


def rows(path: Path) -> Any:
    """Every row that must not be lost, as SQLite reads it from a copy, or what SQLite says instead; its own check included.

    Left out is what may be forgotten at any crash (marks, records of transactions, lives that were seen).
    """
    with tempfile.TemporaryDirectory(prefix="r3-rows-") as folder:
        for suffix in ("", "-wal"):
            if (source := path.with_name(path.name + suffix)).exists():
                shutil.copy2(source, folder)
        try:
            with closing(sqlite3.connect(Path(folder) / path.name)) as db:
                db.text_factory = bytes
                check = db.execute("PRAGMA integrity_check").fetchall()
                schema = db.execute("SELECT name, sql FROM sqlite_schema ORDER BY name").fetchall()
                tables = [name.decode() for name, sql in schema if sql and sql.startswith(b"CREATE TABLE")]
                return check, schema, {name: _table(db, name) for name in tables if name not in ("transactions", "seen")}
        except (sqlite3.Error, UnicodeDecodeError) as error:
            return str(error)


def _changed(before: Any, now: Any) -> bool:
    """Whether anything differs that no crash may forget. A pack that was dropped once its repository was synced may be back:
    that it was dropped is a mark like the others, and the next start syncs again."""
    if isinstance(now, str) or isinstance(before, str):
        return bool(now != before)
    lost = any(set(old) - set(now[2].get(name, ())) for name, old in before[2].items())
    new = any(set(each) - set(before[2].get(name, ())) for name, each in now[2].items() if name not in DROPPED_BY_MARKS)
    return lost or new or before[:2] != now[:2]


def _differences(before: Any, now: Any) -> list[str]:
    """A few words for each table that differs, or what SQLite says."""
    if isinstance(now, str) or isinstance(before, str):
        return [] if now == before else [str(now)[:200]]
    words = [] if now[:2] == before[:2] else ["integrity check or schema"]
    for name, old in before[2].items():
        gone, new = sorted(set(old) - set(now[2].get(name, ()))), sorted(set(now[2].get(name, ())) - set(old))
        words += [f"{name} lost: {row[:400]}" for row in gone[:3]] + [f"{name} reads: {row[:400]}" for row in new[:3]]
    return words


def _table(db: sqlite3.Connection, name: str) -> list[str]:
    columns = [column[1].decode() for column in db.execute(f"PRAGMA table_info('{name}')")]
    kept = [column for column in columns if column not in NOTES and (name, column) != ("life", "sum")]
    return sorted(map(repr, db.execute(f"SELECT {', '.join(kept)} FROM '{name}'")))


def _zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def run(count: int, seed: int, folder: Path, say: Any = None, rounds_max: int = 100_000) -> dict[str, Any]:
    """Until ``count`` flips mattered."""
    began = time.monotonic()
    cluster = Cluster(folder / "cluster", "direct")
    try:
        flips = Flips(cluster, seed)
        random.seed(seed)
        flips.prepare(folder)
        for node in NODES:
            flips.stop(node, kill=False)
            assert flips.start(node)
        wait(cluster.ready, 60, "ready")
        for number in range(rounds_max):
            flip = flips.round()
            if flip is not None and say:
                where = f"{flip.kind:16} {flip.file} @{flip.offset} {flip.before:02x}→{flip.after:02x}"
                said = "; ".join(flip.found)[:150]
                say(f"{flip.number:4} node-{flip.node} {where} {flip.outcome} {flip.seconds} s {said}")
            if number % 20 == 19:
                flips.push(settle=True)
            if sum(flip.outcome != "harmless" for flip in flips.flips) >= count:
                break
        return {"seed": seed, "seconds": round(time.monotonic() - began, 1), **flips.summary()}
    finally:
        cluster.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=200, help="how many flips that matter")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--directory", type=Path, default=None, help="where the cluster is made (a temporary folder)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="r3-flips-", dir=given.directory) as folder:
        result = run(given.count, given.seed, Path(folder), lambda line: print(line, file=sys.stderr, flush=True))  # noqa: T201
    print(json.dumps(result, indent=2))  # noqa: T201
    return 1 if result["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
