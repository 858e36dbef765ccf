"""The acceptor record: each write is conditional, and nothing in a record ever goes back (V1, V2, V4, V5)."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.protocol.acceptor import Accepted, AcceptOp, AcceptorRecord, CommitOp, Op, PromiseOp, RejoinOp, WriteVerdict
from node.protocol.change import Change
from node.protocol.ids import NO_BALLOT, ORIGIN, Digest, Position
from tests.scenarios.values import REPOSITORY
from tests.unit.machine_values import BASE, CREATION, RECORD, A, B, C, ballot, change

ONE = change("t1")
DONE, REPEATED, REFUSED = WriteVerdict.DONE, WriteVerdict.REPEATED, WriteVerdict.REFUSED


def promise(round_: int, node: object = A, attempt: int = 0) -> PromiseOp:
    return PromiseOp(REPOSITORY, ballot(round_, node, attempt))  # type: ignore[arg-type]


def accept(at: int, what: Change | None = ONE, attempt: int = 1, base: Position = BASE) -> AcceptOp:
    return AcceptOp(REPOSITORY, ballot(at, A, attempt), base, what)


def run(*ops: Op) -> tuple[AcceptorRecord, WriteVerdict]:
    record, verdict = RECORD, DONE
    for op in ops:
        record, verdict = op.on(record)
    return record, verdict


@pytest.mark.parametrize(
    ("ops", "verdict"),
    [
        ([promise(1)], DONE),
        ([promise(1), promise(1)], REPEATED),
        ([promise(2), promise(1)], REFUSED),
        ([promise(1, A), promise(1, B)], DONE),
        ([promise(1, B), promise(1, A)], REFUSED),
        ([accept(1), promise(1)], REFUSED),
    ],
)
def test_v1_promises_rise(ops: list[Op], verdict: WriteVerdict) -> None:
    assert run(*ops)[1] is verdict


@pytest.mark.parametrize(
    ("ops", "verdict"),
    [
        ([accept(1)], DONE),
        ([promise(1), accept(1)], DONE),
        ([accept(1), accept(1)], REPEATED),
        ([accept(1), accept(1, change("t2"))], WriteVerdict.DIVERGENT),
        ([accept(1), accept(1, None)], WriteVerdict.DIVERGENT),
        ([promise(2), accept(1)], REFUSED),
        ([accept(1, attempt=2), accept(1, attempt=1)], REFUSED),
        ([CommitOp(REPOSITORY, ONE), accept(1)], WriteVerdict.MOVED),
        ([accept(1, None, base=Position(1, Digest("1" * 64)))], WriteVerdict.DIVERGENT),
        ([accept(1, None, base=ONE.position)], WriteVerdict.MOVED),
    ],
)
def test_v2_acceptance_is_checked_again_inside_the_write(ops: list[Op], verdict: WriteVerdict) -> None:
    assert run(*ops)[1] is verdict


def test_a_late_write_does_not_take_a_promise_back() -> None:
    """[a prepare passes its check, waits for objects, a newer claim is promised meanwhile]"""
    record, verdict = run(promise(1), promise(5, B), accept(1))
    assert verdict is REFUSED
    assert record.promised == ballot(5, B, 0)
    assert record.accepted is None


def test_accepting_promises_the_same_ballot() -> None:
    record, _ = run(accept(3))
    assert record.promised == record.accepted_ballot == ballot(3)


def test_v4_accepting_no_change_keeps_the_ballot() -> None:
    record, verdict = run(accept(1), accept(1, None, attempt=2))
    assert verdict is DONE
    assert record.accepted == Accepted(ballot(1, A, 2), BASE, None)
    assert record.in_doubt is None
    assert run(accept(1), accept(1, None, attempt=2), accept(1))[1] is REFUSED


def test_v5_a_commit_touches_neither_promised_nor_accepted() -> None:
    before, _ = run(accept(4))
    after, verdict = CommitOp(REPOSITORY, ONE).on(before)
    assert verdict is DONE
    assert after == replace(before, committed=ONE.position)


@pytest.mark.parametrize(
    ("ops", "verdict"),
    [
        ([CommitOp(REPOSITORY, ONE)], DONE),
        ([CommitOp(REPOSITORY, ONE), CommitOp(REPOSITORY, ONE)], REPEATED),
        ([CommitOp(REPOSITORY, ONE), CommitOp(REPOSITORY, change("t2"))], WriteVerdict.DIVERGENT),
        ([CommitOp(REPOSITORY, change("t2", ONE.position))], WriteVerdict.MOVED),
        ([CommitOp(REPOSITORY, change("t2", Position(1, Digest("1" * 64))))], WriteVerdict.DIVERGENT),
        ([CommitOp(REPOSITORY, ONE), CommitOp(REPOSITORY, CREATION)], REPEATED),
    ],
)
def test_commits_go_one_version_at_a_time(ops: list[Op], verdict: WriteVerdict) -> None:
    assert run(*ops)[1] is verdict


def rejoin(promised: int, accepted: Accepted | None = None) -> RejoinOp:
    return RejoinOp(REPOSITORY, ballot(promised, B, 0), accepted)


HELD = Accepted(ballot(3), BASE, ONE)


@pytest.mark.parametrize(
    ("before", "op", "verdict", "promised", "accepted"),
    [
        ([], rejoin(2), DONE, ballot(2, B, 0), None),
        ([], RejoinOp(REPOSITORY, NO_BALLOT, None), REPEATED, RECORD.promised, None),
        ([], rejoin(2, HELD), DONE, ballot(3), HELD),
        ([promise(7)], rejoin(2, HELD), DONE, ballot(7, A, 0), HELD),
        ([accept(5, None)], rejoin(2, HELD), REPEATED, ballot(5), Accepted(ballot(5), BASE, None)),
        ([accept(3)], rejoin(3, HELD), DONE, ballot(3, B, 0), HELD),
        ([accept(3, None)], rejoin(3, HELD), WriteVerdict.DIVERGENT, ballot(3), Accepted(ballot(3), BASE, None)),
        ([], rejoin(4, Accepted(ballot(4), ONE.position, None)), WriteVerdict.MOVED, RECORD.promised, None),
    ],
)
def test_r4_rejoining_takes_over_what_is_higher_and_lowers_nothing(
    before: list[Op], op: RejoinOp, verdict: WriteVerdict, promised: object, accepted: Accepted | None
) -> None:
    record, said = run(*before, op)
    assert (said, record.promised, record.accepted) == (verdict, promised, accepted)


def test_in_doubt_means_accepted_on_what_is_committed() -> None:
    assert RECORD.in_doubt is None
    assert run(accept(1))[0].in_doubt == ONE
    assert run(accept(1), CommitOp(REPOSITORY, ONE))[0].in_doubt is None


def test_impossible_records_cannot_be_made() -> None:
    with pytest.raises(ValueError):
        AcceptorRecord(ballot(2), Accepted(ballot(2), BASE, None), ORIGIN)
    with pytest.raises(ValueError):
        AcceptorRecord(ballot(1), Accepted(ballot(2), BASE, None), BASE)
    with pytest.raises(ValueError):
        Accepted(ballot(1), ORIGIN, ONE)


TWO, OTHER = change("t2", ONE.position), change("t3")
ops = st.one_of(
    st.builds(promise, st.integers(1, 4), st.sampled_from([A, B, C])),
    st.builds(accept, st.integers(1, 4), st.sampled_from([ONE, OTHER, None]), st.integers(1, 3)),
    st.builds(accept, st.integers(1, 4), st.just(TWO), st.integers(1, 3), st.just(ONE.position)),
    st.sampled_from([CommitOp(REPOSITORY, what) for what in (ONE, TWO, OTHER)]),
    st.builds(rejoin, st.integers(0, 5), st.sampled_from([None, HELD, Accepted(ballot(4), ONE.position, TWO)])),
)


@given(st.lists(ops, max_size=12))
def test_no_order_of_writes_makes_a_record_go_back(many: list[Op]) -> None:
    record = RECORD
    for op in many:
        after, verdict = op.on(record)
        assert (verdict is DONE) or after == record
        assert after.promised >= record.promised
        assert after.accepted_ballot >= record.accepted_ballot
        assert after.committed.version >= record.committed.version
        assert after.accepted is not None or record.accepted is None
        record = after
