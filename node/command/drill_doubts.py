"""How long pushes stay in doubt: those whose client was told ``unknown``, or nothing at all, watched until they are settled.

A push is settled when a node that was not hit says so: its change is in that node's history, or ``GET /transactions/{id}``
there names an outcome. One whose client was cut off has no id. It is settled as "never committed" when history has gone so far
that it can stand nowhere any more: its coordinator is dead and forgot it, and what it had under way was at most two versions
beyond what the others knew when it died. (A coordinator that is only paused or cut off may go on with it: then the end of the
round decides, when all replicas are equal and none is in doubt.)
"""

import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from node.command.client import NodeSilent, get
from node.command.drill_push import Pushed
from node.command.drill_targets import Target

POLL_S = 0.05
ASK_TIMEOUT_S = 5.0
CERTAIN = ("committed", "aborted", "rejected")
BEYOND = 2


@dataclass(slots=True)
class Doubt:
    """One push in doubt. Seconds are counted from when its client knew that it did not know."""

    pushed: Pushed
    mark: int = 0
    """The highest version that anybody named when it came into doubt."""
    outcome: str = ""
    settled_at: float | None = None

    @property
    def seconds(self) -> float | None:
        return None if self.settled_at is None else max(0.0, self.settled_at - self.pushed.ended_at)


class History:
    """What one node's own journal says was committed, read as it grows."""

    def __init__(self, target: Target, repository: str) -> None:
        self._target = target
        self._path = f"/repos/{repository}/history"
        self.version = 0
        self.oids: set[str] = set()
        self.digest = ""

    def read(self) -> bool:
        """Everything that is new; False if the node did not answer."""
        with suppress(NodeSilent):
            while True:
                answer = get(self._target.url, f"{self._path}?since={self.version}&limit=200", ASK_TIMEOUT_S, local=True)
                if not answer.ok:
                    return False
                changes: list[dict[str, Any]] = answer.body["changes"]
                for change in changes:
                    self.oids |= {update["new"] for each in change["requests"] for update in each["updates"]}
                    self.version, self.digest = int(change["version"]), str(change["digest"])
                if answer.body["next"] is None or not changes:
                    return True
        return False


@dataclass(slots=True)
class _Shared:
    lock: threading.Lock = field(default_factory=threading.Lock)
    doubts: list[Doubt] = field(default_factory=list)


class Doubts(threading.Thread):
    """Watches through ``watchers``, the nodes that are not hit. ``forgotten``: the node that is hit forgets what it had under
    way, and its id."""

    def __init__(self, watchers: Iterable[Target], repository: str, forgotten: str = "") -> None:
        super().__init__(name="doubts", daemon=True)
        self._watchers = list(watchers)
        self._histories = [History(watcher, repository) for watcher in self._watchers]
        self._forgotten = forgotten
        self._shared = _Shared()
        self._ended = threading.Event()

    def add(self, pushed: Pushed) -> None:
        """From any thread."""
        with self._shared.lock:
            self._shared.doubts.append(Doubt(pushed))

    def all(self) -> list[Doubt]:
        with self._shared.lock:
            return list(self._shared.doubts)

    def run(self) -> None:
        while not self._ended.wait(POLL_S):
            self.look()

    def look(self) -> None:
        """Once at everything that is not settled."""
        doubts = [doubt for doubt in self.all() if doubt.settled_at is None]
        if not doubts:
            return
        heard = [history for history in self._histories if history.read()]
        now = time.monotonic()
        oids = set().union(*(history.oids for history in heard))
        version = max((history.version for history in heard), default=0)
        for doubt in doubts:
            doubt.mark = doubt.mark or version
            if doubt.pushed.new in oids:
                doubt.outcome, doubt.settled_at = "committed", now
            elif doubt.pushed.txn and (said := self._said(doubt.pushed.txn)):
                doubt.outcome, doubt.settled_at = said, time.monotonic()
            elif doubt.pushed.node == self._forgotten and not doubt.pushed.txn and version >= doubt.mark + BEYOND:
                doubt.outcome, doubt.settled_at = "never committed", now

    def end(self) -> None:
        """Nothing is watched any more; returns at once."""
        self._ended.set()

    def close(self, equal: bool) -> list[Doubt]:
        """End watching. ``equal``: all replicas are equal and none is in doubt, so that what is in no history is nowhere."""
        self._ended.set()
        self.join(timeout=30)
        self.look()
        for doubt in self.all():
            if doubt.settled_at is None and equal and not doubt.pushed.txn:
                doubt.outcome, doubt.settled_at = "never committed", time.monotonic()
        return self.all()

    def _said(self, txn: str) -> str:
        for watcher in self._watchers:
            with suppress(NodeSilent):
                answer = get(watcher.url, f"/transactions/{txn}", ASK_TIMEOUT_S)
                if answer.ok and answer.body.get("outcome") in CERTAIN:
                    return str(answer.body["outcome"])
        return ""
