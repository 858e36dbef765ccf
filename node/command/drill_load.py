"""The pushes of a drill: one after another through one or several nodes, each remembered with what became of it.

A lane is one thread with a branch of its own, so lanes never make each other's pushes stale. After a push whose outcome is
unknown a lane goes on on a new branch: nobody can say yet what the old one is.
"""

import threading
import time
from collections.abc import Callable, Sequence

from node.command.drill_push import ZERO, Client, Fate, Pushed, commit
from node.command.output import CommandError

STOP_TIMEOUT_S = 30.0
RETRY_PAUSE_S = 0.1
"""After a push that did not get through, so that a dead node is not asked in a busy loop."""


class Lane(threading.Thread):
    """Pushes to ``clients`` in turn until it is stopped. ``told`` hears of each push, in this thread."""

    def __init__(
        self, clients: Sequence[Client], branch: str, pause_s: float = 0.0, told: Callable[[Pushed], None] = lambda pushed: None
    ) -> None:
        super().__init__(name=f"lane {branch}", daemon=True)
        self.pushed: list[Pushed] = []
        self._clients = clients
        self._branch = branch
        self._ref = f"refs/heads/{branch}"
        self._tip = ZERO
        self._pause_s = pause_s
        self._told = told
        self._ended = threading.Event()

    def run(self) -> None:
        try:
            while not self._ended.is_set():
                done = self.once()
                self._ended.wait(self._pause_s if done.fate is Fate.ACKNOWLEDGED else max(self._pause_s, RETRY_PAUSE_S))
        finally:
            for client in self._clients:
                client.close()

    def once(self) -> Pushed:
        """One push."""
        number = len(self.pushed)
        oid, pack = commit(self._tip, f"{self._branch} {number} {time.time_ns()}\n")
        done = self._clients[number % len(self._clients)].push(self._ref, self._tip, oid, pack)
        if done.fate is Fate.ACKNOWLEDGED:
            self._tip = oid
        elif done.fate is Fate.UNKNOWN:
            self._ref, self._tip = f"refs/heads/{self._branch}-{number}", ZERO
        self.pushed.append(done)
        self._told(done)
        return done

    def end(self) -> None:
        """No push begins any more; returns at once."""
        self._ended.set()

    def stop(self) -> list[Pushed]:
        """All pushes, when the last one has its answer. Raises ``CommandError`` if that never comes."""
        self._ended.set()
        self.join(timeout=STOP_TIMEOUT_S)
        if self.is_alive():
            raise CommandError(f"a push of the {self.name} has no end")
        return self.pushed

    def acknowledged(self, since: float = 0.0) -> list[Pushed]:
        """Those that began after ``since``."""
        return [each for each in list(self.pushed) if each.fate is Fate.ACKNOWLEDGED and each.began_at >= since]
