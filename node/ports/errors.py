"""Whatever may cross an edge of a node: foreign exceptions stop at the adapter and become one of these.

NodeError
├── TransportError              the peer or the broker
│   ├── PeerUnreachable         nothing was delivered, as far as is known
│   └── NoAnswer                it may have been delivered
├── StorageError                the own disk
│   ├── DataDirectoryInUse      another process holds it
│   ├── JournalRefused          it belongs to another node or cluster, or is damaged
│   │   └── JournalDamaged      a row is not what was written, and which
│   └── DiskRefused             full, or failing: nothing was promised
│       ├── DiskFull            it goes on when there is room
│       ├── DiskFailed          what was written before may be lost as well
│       └── WrongKind           the disk is well, but a folder is where a file should be, or the other way round
├── PackRefused                 the client's objects, in git's own words
├── Busy                        a stated bound is reached
└── ReadRefused                 a read of one repository; says at which position this node stands, if it knows
    ├── RepositoryAbsent        never existed, deleted, or named with other capitals
    └── ReadUnavailable         no majority answered in time, or this replica is set aside
        ├── VersionNotReached   the version that the reader has seen already is not here in time
        └── NotAMember          this node may not speak for any repository now
"""

from enum import Enum

from node.protocol.ids import Position, RepoId


class NodeError(Exception):
    """Base of all; messages are short lower-case facts."""


class TransportError(NodeError):
    """A request to a peer brought no reply."""


class PeerUnreachable(TransportError):
    """Not connected, refused, or returned as unroutable: as far as is known nothing was delivered."""


class NoAnswer(TransportError):
    """No reply within the time given; it may have been delivered."""


class StorageError(NodeError):
    """The own disk or journal."""


class DataDirectoryInUse(StorageError):
    """Another process holds this data directory."""


class JournalRefused(StorageError):
    """The journal belongs to another node or cluster, is of an unknown format, or is damaged."""


class DamagedPart(Enum):
    """What of a journal is damaged; it decides how that is mended."""

    RECORD = "record"
    """An acceptor record: what was promised or voted for here is not known any more. Amnesia (R4)."""
    VALUE = "value"
    """A register's name, HEAD, voters, floor or marks: made again from history."""
    REFS = "refs"
    """A register's refs: made again from history."""
    HISTORY = "history"
    """A committed change: fetched again from a peer, proved by the digest chain."""
    CERTIFICATE = "certificate"
    """Fetched again from a peer, proved by its signatures."""
    PACK = "pack"
    """A small pack: taken from the repository, or fetched again, proved by its checksum."""
    INDEX = "index"
    """Who names which pack, which change holds which transaction: made again from history and the acceptor record."""
    TRANSACTION = "transaction"
    """A record for people: dropped; history has its outcome."""
    DATABASE = "database"
    """SQLite cannot make sense of its pages: nothing in it can be trusted. Amnesia (R4)."""


class JournalDamaged(JournalRefused):
    """A row of the journal does not have the checksum it was written with. Nothing was decided by what it says."""

    def __init__(self, repository: RepoId | None, part: DamagedPart, detail: str, version: int = 0) -> None:
        where = f" of {repository}" if repository else ""
        at = f" at version {version}" if version else ""
        super().__init__(f"the journal is damaged: {part.value}{where}{at}: {detail}")
        self.repository = repository
        self.part = part
        self.detail = detail
        self.version = version
        """Of the change, where it is about one."""


class DiskRefused(StorageError):
    """The disk is full or failing; nothing was promised on it."""


class DiskFull(DiskRefused):
    """No room, or no quota; to be tried again when there is."""


class DiskFailed(DiskRefused):
    """An I/O error. After a failed fsync a later one succeeds and proves nothing: the kernel has called the pages clean."""


class WrongKind(DiskRefused):
    """A folder, a file or a symbolic link is where something else should be: somebody else's doing. Nothing was lost by it."""


class PackRefused(NodeError):
    """Received objects were refused; the text is git's own, ready for ``unpack`` in a report-status."""


class Busy(NodeError):
    """A stated bound on concurrent work is reached; try again later."""


class ReadRefused(NodeError):
    """One repository cannot be read. ``position``: what this node has applied of it; ``None`` where that is not known."""

    def __init__(self, message: str, position: Position | None = None) -> None:
        super().__init__(message)
        self.position = position


class RepositoryAbsent(ReadRefused):
    """There is no such repository at the version read."""


class ReadUnavailable(ReadRefused):
    """A linearizable read found no majority in time, and ``local`` consistency would answer, perhaps with old data; or this
    replica is set aside and serves nobody."""


class VersionNotReached(ReadUnavailable):
    """The reader wants at least a version that this node does not have, and cannot get in time."""


class NotAMember(ReadUnavailable):
    """R4: this node is new, starting, rejoining or stopped: it answers nothing for any repository, not even old data."""


class RejoinRefused(NodeError):
    """An operator asked for a rejoin that must not be, or needs more words."""
