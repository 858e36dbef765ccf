"""How this node's disk is: good, short of room, or failed. What may be promised on it, and what people are told, follows.

failed   a write or an fsync of the journal, or an fsync of what it names, brought an I/O error. The kernel says so once and
         then calls the pages clean, so nothing that was written since the last good one can be trusted before the node has
         been started again and has replayed. Until then: no promises, no votes, no writes
short    less than ``free_bytes_min`` is free. No votes for what needs room, no pushes; reads go on, and what the others
         commit is still learned as long as it fits. It ends by itself when there is room
"""

from node.config import Config
from node.ports.journal import Journal
from node.ports.objects import ObjectStore

MIB = 1024**2


class Disk:
    """Asked before every vote; never waits for the disk itself."""

    def __init__(self, config: Config, journal: Journal, store: ObjectStore) -> None:
        self._free_bytes_min = config.free_bytes_min
        self._journal = journal
        self._store = store

    @property
    def failed(self) -> str:
        """Why nothing can be written until the node is started again, or empty."""
        return f"disk failed: {self._journal.failed}" if self._journal.failed else ""

    @property
    def short(self) -> str:
        """Why what needs room is refused, or empty."""
        free = self._store.free_bytes()
        if free >= self._free_bytes_min:
            return ""
        return f"disk full: {free // MIB} MiB are free, {self._free_bytes_min // MIB} MiB are needed (free_bytes_min)"

    @property
    def problem(self) -> str:
        """The worse of both, or empty."""
        return self.failed or self.short

    def __repr__(self) -> str:
        return f"<Disk {self.problem or 'good'}>"
