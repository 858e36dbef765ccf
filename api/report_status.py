"""What a pusher is told about each ref, and which commands are worth a transaction at all. Pure.

The words are git's own where git has words. Format: gitprotocol-pack(5), "Report Status"; v2 of it only adds lines for refs
that a server renamed, which this one never does.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

from api.pkt import FLUSH_PKT, pkt
from api.push_commands import Command
from node.protocol.change import UPDATES_PER_REQUEST_MAX, RefUpdate
from node.protocol.ids import RefName
from node.protocol.names import NameRefused
from node.protocol.outcome import Outcome, OutcomeKind

REASON_LENGTH_MAX = 1000

ATOMIC_FAILED = "atomic push failure"
UNPACK_FAILED = "unpacker error"

Reasons = Mapping[bytes, str]
"""Per ref, why it was not written."""


def screen(commands: Iterable[Command]) -> tuple[tuple[RefUpdate, ...], dict[bytes, str]]:
    """The commands that may become a change, and why the others may not: names, duplicates, nothing to do, too many."""
    times = Counter(command.ref for command in commands)
    updates: list[RefUpdate] = []
    refused: dict[bytes, str] = {}
    for command in commands:
        if times[command.ref] > 1:
            refused[command.ref] = "multiple updates for one ref are not allowed"
        elif command.old == command.new and command.deletes:
            refused[command.ref] = "reference does not exist"
        elif len(updates) >= UPDATES_PER_REQUEST_MAX:
            refused[command.ref] = f"more than {UPDATES_PER_REQUEST_MAX} refs in one push, push it again"
        else:
            try:
                name = RefName(command.ref.decode("utf-8", "surrogateescape"))
                updates.append(RefUpdate(name, command.old, command.new))
            except NameRefused as error:
                refused[command.ref] = str(error)
    return tuple(updates), refused


def report(commands: Iterable[Command], unpack: str, reasons: Reasons) -> bytes:
    """The report: how the pack fared, then a line per command."""
    lines = [pkt(b"unpack " + _one_line(unpack) + b"\n")]
    for command in commands:
        reason = reasons.get(command.ref)
        if reason is None:
            lines.append(pkt(b"ok " + command.ref + b"\n"))
        else:
            lines.append(pkt(b"ng " + command.ref + b" " + _one_line(reason) + b"\n"))
    lines.append(FLUSH_PKT)
    return b"".join(lines)


def every(commands: Iterable[Command], reason: str) -> dict[bytes, str]:
    """The same reason for all."""
    return dict.fromkeys((command.ref for command in commands), reason)


def reasons_of(outcome: Outcome, refs: Iterable[RefName], *, atomic: bool, url: str) -> dict[bytes, str]:
    """Why each of ``refs``, which were submitted, was not written; those that were are left out.

    ``url`` is this node's: where an unknown outcome can be asked for.
    """
    rejected = dict(outcome.rejections)
    if outcome.kind is OutcomeKind.COMMITTED:
        others = None
    elif outcome.kind is OutcomeKind.UNKNOWN:
        others = unknown(outcome.txn, url) + (f" ({outcome.reason})" if outcome.reason else "")
    elif outcome.kind is OutcomeKind.REJECTED and atomic and rejected:
        others = ATOMIC_FAILED
    else:
        others = outcome.reason or "the push was refused"
    reasons = {ref: rejected.get(ref, others) for ref in refs}
    return {ref.encode(): reason for ref, reason in reasons.items() if reason is not None}


def unknown(txn: str, url: str) -> str:
    """Never "failed" for what may yet be committed."""
    return f"outcome unknown, transaction {txn}; it is being settled, see {url}/transactions/{txn}"


def remark(outcome: Outcome) -> str:
    """The quorum at work, for people: one line, or nothing."""
    if outcome.kind is not OutcomeKind.COMMITTED or outcome.position is None:
        return ""
    return (
        f"gitquorum: version {outcome.position.version} committed on {outcome.confirmed}/{outcome.voters} "
        f"(quorum {outcome.quorum}) tx {outcome.txn}"
    )


def _one_line(text: str) -> bytes:
    return " ".join(text.split())[:REASON_LENGTH_MAX].encode("utf-8", "replace") or b"refused"
