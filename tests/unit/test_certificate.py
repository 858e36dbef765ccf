"""A certificate is a quorum of yes-change signatures at one ballot plus its owner's decision on the same tuple."""

from dataclasses import replace

import pytest

from node.protocol.certificate import Certificate, SignedVote, Statement, StatementKind
from node.protocol.ids import NodeId, RepoId
from node.protocol.quorum import VoterSet
from tests.scenarios.values import founding_certificate, genuine, sign
from tests.unit.machine_values import VOTERS, A, B, ballot, change

GOOD = founding_certificate(change("t1"), VOTERS)


def test_a_full_certificate_has_no_flaw() -> None:
    assert GOOD.flaw(VOTERS, genuine) is None
    assert replace(GOOD, votes=GOOD.votes[:2]).flaw(VOTERS, genuine) is None


def signed(kind: StatementKind, node: NodeId, **changed: object) -> SignedVote:
    statement = replace(GOOD.statement(kind, 1), **changed)  # type: ignore[arg-type]
    return SignedVote(node, 1, sign(node, statement.encode()))


@pytest.mark.parametrize(
    ("certificate", "words"),
    [
        (replace(GOOD, votes=GOOD.votes[:1]), "holds 1 votes"),
        (replace(GOOD, votes=(GOOD.votes[0], GOOD.votes[0])), "counts a vote twice"),
        (replace(GOOD, votes=(*GOOD.votes[:1], replace(GOOD.votes[1], node=NodeId("node-9")))), "of a stranger"),
        (replace(GOOD, quorum=1), "no majority"),
        (replace(GOOD, quorum=4), "no majority"),
        (replace(GOOD, voters=VoterSet.of([A, B]).digest), "another voter set"),
        (replace(GOOD, decision=replace(GOOD.decision, node=B)), "not signed by the ballot's owner"),
        (replace(GOOD, ballot=ballot(9)), "is wrong"),
        (replace(GOOD, position=change("t2").position), "is wrong"),
        (replace(GOOD, quorum=3), "is wrong"),
        (replace(GOOD, decision=signed(StatementKind.YES_CHANGE, A)), "decision signature"),
        (replace(GOOD, votes=(signed(StatementKind.YES_NONE, A), *GOOD.votes[1:])), "yes-change signature"),
        (replace(GOOD, votes=(signed(StatementKind.YES_CHANGE, A, ballot=ballot(9)), *GOOD.votes[1:])), "yes-change signature"),
        (replace(GOOD, votes=(replace(GOOD.votes[0], incarnation=2), *GOOD.votes[1:])), "yes-change signature"),
    ],
)
def test_whatever_is_missing_or_altered_is_a_flaw(certificate: Certificate, words: str) -> None:
    reason = certificate.flaw(VOTERS, genuine)
    assert reason is not None
    assert words in reason


def test_votes_alone_prove_nothing() -> None:
    """An aborted change can have a full set of votes: without the owner's decision there is no certificate."""
    stand_in = replace(GOOD.votes[0], signature=GOOD.votes[0].signature)
    assert replace(GOOD, decision=stand_in).flaw(VOTERS, genuine) is not None


def test_every_field_of_a_statement_is_signed() -> None:
    one = GOOD.statement(StatementKind.YES_CHANGE, 1)
    others = [
        replace(one, kind=StatementKind.DECISION),
        replace(one, repository=RepoId("alice/other")),
        replace(one, voters=VoterSet.of([A, B]).digest),
        replace(one, quorum=3),
        replace(one, position=change("t2").position),
        replace(one, ballot=ballot(1, A, 2)),
        replace(one, incarnation=2),
    ]
    assert isinstance(one, Statement)
    assert len({each.encode() for each in (one, *others)}) == len(others) + 1
