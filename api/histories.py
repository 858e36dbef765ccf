"""Committed changes as JSON, bounded: a page ends early rather than list more ref updates than a client can want at once."""

from base64 import b64encode
from collections.abc import Sequence

from api.schemas import CertificateState, Entry, HistoryAnswer, SignatureBy, Submission, Update, at
from node.protocol.certificate import Certificate, SignedVote
from node.protocol.change import Request
from node.protocol.messages import HistoryEntry
from node.protocol.register import Register

UPDATES_PER_REQUEST_SHOWN = 1_000
UPDATES_PER_PAGE_SHOWN = 10_000
"""A page is cut after the change that reaches this; one change may carry 64 requests, so it holds 74,000 at most."""


def history_page(register: Register, entries: Sequence[HistoryEntry]) -> HistoryAnswer:
    """What ``GET …/history`` answers; ``next`` is set while the register has newer changes than the last one shown."""
    shown: list[Entry] = []
    updates = 0
    for entry in entries:
        shown.append(entry_of(entry))
        updates += sum(len(submission.updates) for submission in shown[-1].requests)
        if updates >= UPDATES_PER_PAGE_SHOWN:
            break
    more = bool(shown) and shown[-1].version < register.position.version
    return HistoryAnswer(
        repo_id=register.name,
        version=register.position.version,
        changes=shown,
        next=shown[-1].version if more else None,
    )


def entry_of(entry: HistoryEntry) -> Entry:
    change = entry.change
    position = change.position
    return Entry(
        version=position.version,
        digest=position.digest,
        base_digest=change.base.digest,
        kind=change.kind.value,
        committed_at=at(entry.committed_at_ms),
        requests=[_submission(request) for request in change.requests],
        certificate=None if entry.certificate is None else _certificate(entry.certificate),
    )


def _submission(request: Request) -> Submission:
    """The ``Idempotency-Key`` is left out: it is its client's business."""
    return Submission(
        transaction_id=request.txn,
        actor=request.actor,
        node_id=request.node,
        at=at(request.at_ms),
        head=request.head,
        updates=[
            Update(ref=update.ref, old=update.old, new=update.new, peeled=update.peeled)
            for update in request.updates[:UPDATES_PER_REQUEST_SHOWN]
        ],
        update_count=len(request.updates),
    )


def _certificate(certificate: Certificate) -> CertificateState:
    return CertificateState(
        repository=certificate.repository,
        voters=certificate.voters,
        quorum=certificate.quorum,
        version=certificate.position.version,
        digest=certificate.position.digest,
        ballot=str(certificate.ballot),
        votes=[_signature(vote) for vote in certificate.votes],
        decision=_signature(certificate.decision),
    )


def _signature(vote: SignedVote) -> SignatureBy:
    return SignatureBy(node_id=vote.node, incarnation=vote.incarnation, signature=b64encode(vote.signature).decode())
