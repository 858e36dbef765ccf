"""What happens in a test cluster, in words: one line each, for transcripts and failures."""

from node.protocol.acceptor import AcceptOp, AcceptorRecord, CommitOp, Op
from node.protocol.change import Change
from node.protocol.ids import TxnId
from node.protocol.messages import (
    Abort,
    Acknowledged,
    Claim,
    Commit,
    Prepare,
    Promise,
    Refused,
    TransportReply,
    TransportRequest,
    Vote,
)
from node.protocol.outcome import Outcome


def names(change: Change) -> str:
    return "+".join(change.txns)


def describe_op(op: Op) -> str:
    match op:
        case CommitOp(_, change):
            return f"commit {names(change)} as version {change.position.version}"
        case AcceptOp(_, ballot, base, change):
            return f"accept {names(change) if change else 'no change'} on version {base.version} at {ballot}"
        case _:
            return f"promise {op.ballot}"


def describe(message: TransportRequest | TransportReply) -> str:
    """One message on one line, for people."""
    match message:
        case Claim():
            return f"claim {message.ballot}"
        case Prepare():
            return f"prepare {names(message.change)} on version {message.change.base.version} at {message.ballot}"
        case Abort():
            return f"abort on version {message.base.version} at {message.ballot}"
        case Commit():
            return f"commit version {message.position.version}, decided at {message.certificate.ballot}"
        case Promise():
            held = message.accepted
            what = (names(held.change) if held.change else "no change") if held else "nothing"
            where = f" on version {held.base.version} at {held.ballot}" if held else ""
            staged = ", objects here" if message.staged else ""
            return f"promise {message.ballot}; committed version {message.committed.version}; accepted {what}{where}{staged}"
        case Refused():
            return f"refused {message.ballot}: promised {message.promised}" + (f" ({message.reason})" if message.reason else "")
        case Vote():
            what = "no change" if message.none else f"version {message.position.version}"
            reason = f" ({message.reason})" if message.reason else ""
            return f"vote {message.kind.value} for {what} at {message.ballot}{reason}"
        case Acknowledged():
            return f"acknowledged, at version {message.committed.version}"


def describe_answer(submitted: TxnId, outcome: Outcome) -> str:
    where = f" at version {outcome.position.version}" if outcome.position else ""
    count = f" on {outcome.confirmed}/{outcome.voters}" if outcome.votes else ""
    as_ = f" as {outcome.txn}" if outcome.txn != submitted else ""
    reason = f": {outcome.reason}" if outcome.reason else ""
    return f"ANSWER {submitted} {outcome.kind.value}{where}{count}{as_}{reason}"


def describe_record(record: AcceptorRecord) -> str:
    held = record.accepted
    what = "nothing"
    if held is not None:
        what = f"{names(held.change) if held.change else 'no change'} on version {held.base.version} at {held.ballot}"
    doubt = ", in doubt" if record.in_doubt else ""
    return f"committed version {record.committed.version}; promised {record.promised}; accepted {what}{doubt}"
