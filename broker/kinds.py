"""Every message that travels between nodes, as data: its class, its name on the wire, how large it may be, what answers it.

The codec, the AMQP topology and the direct HTTP endpoint read the same table, so that none of them can know a kind that
another does not. A kind's name carries its version: a node that does not know ``gitquorum.prepare.v2`` refuses it by name.
"""

from dataclasses import dataclass

from node.protocol import messages as m

_KIB, _MIB = 1024, 1024 * 1024

OBJECTS_BYTES_MAX = 12 * _MIB
"""Messages in which a change and its small packs ride: RabbitMQ 4 refuses bodies above 16 MiB."""
PAGE_BYTES_MAX = 48 * _MIB
"""A page of history; never goes through the broker."""
ENVELOPE_BYTES_MAX = max(OBJECTS_BYTES_MAX, PAGE_BYTES_MAX)
"""Nothing larger is even looked at."""
REQUEST_BYTES_MAX = OBJECTS_BYTES_MAX
"""The largest body of a ``POST /replicate/{kind}``."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of message."""

    message: type[m.Message]
    word: str
    """The last part of ``/replicate/{word}``, and of a routing key."""
    bytes_max: int
    answers: tuple[str, ...] = ()
    """Words of the kinds that may answer it; empty for a reply."""

    @property
    def name(self) -> str:
        """What stands in the envelope, and in the AMQP property ``type``."""
        return f"gitquorum.{self.word}.v1"


TRANSPORT_REPLIES = (
    Kind(m.Promise, "promise", OBJECTS_BYTES_MAX),
    Kind(m.Refused, "refused", 16 * _KIB),
    Kind(m.Vote, "vote", 16 * _KIB),
    Kind(m.Acknowledged, "acknowledged", 16 * _KIB),
)
_ANY = tuple(kind.word for kind in TRANSPORT_REPLIES)

TRANSPORT_REQUESTS = (
    Kind(m.Claim, "claim", 16 * _KIB, _ANY),
    Kind(m.Prepare, "prepare", OBJECTS_BYTES_MAX, _ANY),
    Kind(m.Abort, "abort", 16 * _KIB, _ANY),
    Kind(m.Commit, "commit", 256 * _KIB, _ANY),
)
DIRECT_REPLIES = (
    Kind(m.Staged, "staged", 64 * _KIB),
    Kind(m.Pong, "pong", 16 * _KIB),
    Kind(m.Status, "status", 16 * _KIB),
    Kind(m.HistoryPage, "history-page", PAGE_BYTES_MAX),
    Kind(m.SummaryPage, "summary-page", 4 * _MIB),
    Kind(m.BranchPage, "branch-page", 4 * _MIB),
    Kind(m.TransactionReport, "transaction-report", 8 * _MIB),
    Kind(m.Enrolment, "enrolment", 16 * _KIB),
    Kind(m.AcceptorPage, "acceptor-page", PAGE_BYTES_MAX),
)
DIRECT_REQUESTS = (
    Kind(m.Stage, "stage", 1 * _MIB, ("staged",)),
    Kind(m.Ping, "ping", 16 * _KIB, ("pong",)),
    Kind(m.Query, "query", 16 * _KIB, ("status",)),
    Kind(m.History, "history", 16 * _KIB, ("history-page",)),
    Kind(m.Summaries, "summaries", 16 * _KIB, ("summary-page",)),
    Kind(m.Branches, "branches", 16 * _KIB, ("branch-page",)),
    Kind(m.Transaction, "transaction", 16 * _KIB, ("transaction-report",)),
    Kind(m.Fetch, "fetch", 64 * _KIB),
    Kind(m.Enrol, "enrol", 16 * _KIB, ("enrolment",)),
    Kind(m.AcceptorRecords, "acceptor-records", 16 * _KIB, ("acceptor-page",)),
)

KINDS = (*TRANSPORT_REQUESTS, *TRANSPORT_REPLIES, *DIRECT_REQUESTS, *DIRECT_REPLIES)
BY_WORD = {kind.word: kind for kind in KINDS}
BY_NAME = {kind.name: kind for kind in KINDS}
BY_MESSAGE: dict[type[m.Message], Kind] = {kind.message: kind for kind in KINDS}
