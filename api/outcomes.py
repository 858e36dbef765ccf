"""What an outcome is called in HTTP: 201 or 200 for committed, 503 for aborted, 202 for unknown."""

from typing import NoReturn

from fastapi import Response

from api.answers import answer
from api.problems import problem
from api.schemas import Unsettled, Vote
from node.protocol.ids import NodeId
from node.protocol.names import RepositoryName
from node.protocol.outcome import Outcome, VoterReport


def committed_on(outcome: Outcome) -> list[NodeId]:
    """The nodes known to hold the change durably: the yes votes, or those of the certificate where the votes themselves
    were not seen (the answer comes from history)."""
    voted = {report.node for report in outcome.votes if report.vote == "yes"}
    if outcome.certificate is not None:
        voted |= {vote.node for vote in outcome.certificate.votes}
    return sorted(voted)


def origin(outcome: Outcome, me: NodeId) -> NodeId:
    """The node that took the request: the one a repeated request may be answered far from."""
    requests = outcome.change.requests if outcome.change is not None else ()
    return next((request.node for request in requests if request.txn == outcome.txn), me)


def votes_of(reports: tuple[VoterReport, ...]) -> list[Vote]:
    return [Vote(node_id=report.node, vote=report.vote, reason=report.reason) for report in reports]


def unsettled(name: RepositoryName, outcome: Outcome) -> Response:
    """202: it may have happened. Never "failed"."""
    shown = Unsettled(repo_id=str(name), transaction_id=outcome.txn, detail=outcome.reason, votes=votes_of(outcome.votes))
    return answer(shown, 202, {"Location": f"/transactions/{outcome.txn}", "Retry-After": "1"})


def raise_aborted(outcome: Outcome) -> NoReturn:
    """503: it has not happened and never will; a retry is safe."""
    reason = outcome.reason or "quorum not reached"
    raise problem(
        "quorum-not-reached",
        f"{reason[:1].upper()}{reason[1:]}. Nothing was changed, for certain; send it again.",
        transaction_id=outcome.txn,
        quorum=outcome.quorum,
        voters=outcome.voters,
        confirmed=outcome.confirmed,
        sent=outcome.sent,
        votes=[vote.model_dump() for vote in votes_of(outcome.votes)],
    )
