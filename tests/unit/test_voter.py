"""The voter, rule by rule (replication.md V1–V6, C7, R1, O4). The journal on the desk obeys ``acceptor.py``."""

from dataclasses import replace

import pytest

from node.protocol.acceptor import AcceptOp, AcceptorRecord, PromiseOp, WriteVerdict
from node.protocol.effects import Alarm, CatchUp, Discard, Settle, StageObjects, Undone, Witness
from node.protocol.events import ObjectsStaged, SetAside, Suspected, Written
from node.protocol.ids import Digest, Position
from node.protocol.messages import Acknowledged, Promise, Refused, Vote, VoteKind
from node.protocol.quorum import VoterSet
from node.protocol.session import TRANSITIONS, Phase, Trigger
from node.protocol.voter import SESSIONS_MAX, Voter
from tests.scenarios.values import REPOSITORY
from tests.unit.desk import Desk, abort, claim, commit, prepare, replies, voter_desk, wishes
from tests.unit.machine_values import BASE, RECORD, REGISTER, TIMING, A, B, C, ballot, change, only

ONE = change("t1")
TWO = change("t2", ONE.position)
PACKED = change("t1", packed=True)


def in_doubt(round_: int = 1) -> AcceptorRecord:
    return AcceptOp(REPOSITORY, ballot(round_), BASE, ONE).on(RECORD)[0]


def one_vote(desk: Desk, *args: object, **more: object) -> Vote:
    (reply,) = replies(desk.ask(*args, **more))  # type: ignore[arg-type]
    assert isinstance(reply, Vote)
    return reply


class TestTable:
    def test_every_phase_has_a_row_and_the_last_is_empty(self) -> None:
        assert set(TRANSITIONS) == set(Phase)
        assert [phase for phase, row in TRANSITIONS.items() if not row] == [Phase.ANSWERED]

    def test_every_trigger_is_used_and_every_phase_is_reachable(self) -> None:
        assert {trigger for row in TRANSITIONS.values() for trigger in row} == set(Trigger)
        reached, edge = {Phase.ARRIVED}, {Phase.ARRIVED}
        while edge:
            edge = {after for phase in edge for after in TRANSITIONS[phase].values()} - reached
            reached |= edge
        assert reached == set(Phase)

    @pytest.mark.parametrize("phase", [phase for phase in Phase if phase is not Phase.ANSWERED])
    def test_every_request_can_be_answered(self, phase: Phase) -> None:
        assert Phase.ANSWERED in TRANSITIONS[phase].values() or Trigger.ANSWER in TRANSITIONS[phase]


class TestClaims:
    def test_v1_a_claim_is_promised_after_the_promise_is_durable(self) -> None:
        desk = voter_desk()
        desk.slow = True
        assert replies(desk.ask(claim(1))) == []
        (reply,) = replies(desk.write())
        assert isinstance(reply, Promise)
        assert (reply.ballot, desk.record.promised) == (ballot(1, A, 0), ballot(1, A, 0))

    def test_v1_the_same_claim_gets_the_same_promise(self) -> None:
        desk = voter_desk()
        assert replies(desk.ask(claim(1))) == replies(desk.ask(claim(1)))

    def test_v1_a_lower_claim_is_refused_with_what_is_promised(self) -> None:
        desk = voter_desk()
        desk.ask(claim(5, C), C)
        (reply,) = replies(desk.ask(claim(1)))
        assert isinstance(reply, Refused)
        assert reply.promised == ballot(5, C, 0)

    def test_v1_a_promise_says_what_is_accepted_and_committed(self) -> None:
        desk = voter_desk(in_doubt())
        desk.feed(Suspected(frozenset({A})))
        (reply,) = replies(desk.ask(claim(2, C), C))
        assert isinstance(reply, Promise)
        assert reply.accepted is not None
        assert (reply.accepted.change, reply.committed) == (ONE, BASE)

    def test_c7_a_young_change_delays_a_foreign_claim_once(self) -> None:
        desk = voter_desk()
        desk.ask(prepare(ONE))
        assert replies(desk.ask(claim(2, C), C, now=0.1)) == []
        assert replies(desk.tick(TIMING.hold_s - 0.01)) == []
        (reply,) = replies(desk.tick(TIMING.hold_s))
        assert isinstance(reply, Promise)

    def test_c7_a_duplicate_is_not_let_through_sooner(self) -> None:
        desk = voter_desk()
        desk.ask(prepare(ONE))
        desk.ask(claim(2, C), C, now=0.1)
        assert replies(desk.ask(claim(2, C), C, now=0.15)) == []

    @pytest.mark.parametrize("why", ["decided", "owner suspected", "owner claims again"])
    def test_c7_nobody_waits_without_need(self, why: str) -> None:
        desk = voter_desk()
        desk.ask(prepare(ONE))
        if why == "owner claims again":
            assert len(replies(desk.ask(claim(2, A), A))) == 1
            return
        assert replies(desk.ask(claim(2, C), C, now=0.1)) == []
        out = desk.ask(commit(ONE)) if why == "decided" else desk.feed(Suspected(frozenset({A})))
        assert any(isinstance(reply, Promise) for reply in replies(out))


class TestPrepares:
    def test_v2_a_yes_is_sent_after_the_acceptance_is_durable(self) -> None:
        desk = voter_desk()
        desk.slow = True
        assert replies(desk.ask(prepare(ONE))) == []
        (reply,) = replies(desk.write())
        assert isinstance(reply, Vote)
        assert (reply.kind, reply.position) == (VoteKind.YES, ONE.position)
        assert desk.record.in_doubt == ONE

    def test_v2_a_lower_ballot_is_refused(self) -> None:
        desk = voter_desk()
        desk.ask(claim(3, C), C)
        (reply,) = replies(desk.ask(prepare(ONE)))
        assert isinstance(reply, Refused)
        assert reply.promised == ballot(3, C, 0)

    def test_v2_the_same_ballot_gets_the_same_vote(self) -> None:
        desk = voter_desk()
        assert one_vote(desk, prepare(ONE)) == one_vote(desk, prepare(ONE))

    def test_v2_two_values_at_one_ballot_are_an_alarm(self) -> None:
        desk = voter_desk()
        desk.ask(prepare(ONE))
        out = desk.ask(prepare(change("other")))
        assert only(Alarm, out)[0].stop
        assert isinstance(replies(out)[0], Refused)

    def test_v2_a_prepare_overtaken_by_a_claim_while_it_waits_for_objects_is_refused(self) -> None:
        desk = voter_desk()
        desk.ask(prepare(PACKED))
        desk.ask(claim(4, C), C)
        (reply,) = replies(desk.feed(ObjectsStaged(PACKED.position.digest)))
        assert isinstance(reply, Refused)
        assert (desk.record.promised, desk.record.accepted) == (ballot(4, C, 0), None)

    def test_v2_a_prepare_overtaken_between_its_check_and_its_write_is_refused_by_the_journal(self) -> None:
        desk = voter_desk()
        desk.slow = True
        desk.ask(prepare(ONE))
        desk.waiting.insert(0, PromiseOp(REPOSITORY, ballot(4, C, 0)))
        (reply,) = replies(desk.write())
        assert isinstance(reply, Refused)
        assert (reply.promised, desk.record.accepted) == (ballot(4, C, 0), None)

    def test_v2_a_change_in_history_is_already_committed(self) -> None:
        desk = voter_desk()
        desk.learn(ONE)
        assert one_vote(desk, prepare(ONE)).kind is VoteKind.ALREADY_COMMITTED

    def test_v2_an_old_base_is_behind(self) -> None:
        desk = voter_desk()
        desk.learn(ONE)
        reply = one_vote(desk, prepare(change("other")))
        assert (reply.kind, reply.committed) == (VoteKind.BEHIND_COORDINATOR, ONE.position)

    def test_v2_a_base_proves_the_own_accepted_change_committed(self) -> None:
        desk = voter_desk()
        desk.ask(prepare(ONE))
        assert one_vote(desk, prepare(TWO, attempt=2)).kind is VoteKind.YES
        assert desk.register.position == ONE.position

    def test_v2_a_base_with_another_digest_proves_nothing_of_the_own_change(self) -> None:
        desk = voter_desk()
        desk.ask(prepare(ONE))
        other = change("other")
        out = desk.ask(prepare(change("t2", other.position), attempt=2))
        assert (replies(out), only(CatchUp, out)[0].told) == ([], other.position)
        assert desk.register.position == BASE

    def test_v2_a_lagging_voter_catches_up_before_it_votes(self) -> None:
        desk = voter_desk()
        out = desk.ask(prepare(TWO))
        assert (replies(out), [effect.version for effect in only(CatchUp, out)]) == ([], [2])
        (reply,) = replies(desk.learn(ONE))
        assert isinstance(reply, Vote)
        assert reply.kind is VoteKind.YES

    def test_v2_it_answers_lagging_at_the_deadline(self) -> None:
        desk = voter_desk()
        out = desk.ask(prepare(TWO, deadline_s=1.0))
        assert 1.0 in wishes(out)
        (reply,) = replies(desk.tick(1.0))
        assert isinstance(reply, Vote)
        assert reply.kind is VoteKind.LAGGING

    def test_v2_objects_are_staged_before_the_vote(self) -> None:
        desk = voter_desk()
        out = desk.ask(prepare(PACKED))
        assert only(StageObjects, out)[0].change == PACKED
        assert (replies(out), desk.record.accepted) == ([], None)
        (reply,) = replies(desk.feed(ObjectsStaged(PACKED.position.digest)))
        assert isinstance(reply, Vote)
        assert reply.kind is VoteKind.YES

    def test_v2_objects_that_cannot_be_had_are_a_no_with_its_reason(self) -> None:
        desk = voter_desk()
        desk.ask(prepare(PACKED))
        (reply,) = replies(desk.feed(ObjectsStaged(PACKED.position.digest, "disk full")))
        assert isinstance(reply, Vote)
        assert (reply.kind, reply.reason) == (VoteKind.NO, "disk full")

    @pytest.mark.parametrize(
        ("wrong", "words"),
        [
            (prepare(change("t1", branch="t1/x"), quorum=1), "no majority"),
            (prepare(change("t1"), quorum=4), "no majority"),
        ],
    )
    def test_v2_a_no_carries_its_reason(self, wrong: object, words: str) -> None:
        reply = one_vote(voter_desk(), wrong)
        assert reply.kind is VoteKind.NO
        assert words in reply.reason

    def test_v2_old_values_are_checked(self) -> None:
        desk = voter_desk()
        desk.learn(ONE)
        again = change("t9", ONE.position, branch="t1")
        reply = one_vote(desk, prepare(again))
        assert reply.kind is VoteKind.NO
        assert "already exists" in reply.reason

    def test_v2_a_commit_that_comes_between_check_and_write_is_looked_at_again(self) -> None:
        desk = voter_desk()
        desk.slow = True
        desk.ask(prepare(ONE))
        desk.learn(change("other"))
        (reply,) = replies(desk.write())
        assert isinstance(reply, Vote)
        assert reply.kind is VoteKind.BEHIND_COORDINATOR

    def test_a_failing_journal_is_a_no_and_is_not_asked_again_at_once(self) -> None:
        desk = voter_desk()
        desk.slow = True
        desk.ask(prepare(ONE))
        (reply,) = replies(desk.feed(Written(desk.waiting[0], WriteVerdict.REFUSED, RECORD)))
        assert isinstance(reply, Vote)
        assert (reply.kind, reply.reason) == (VoteKind.NO, "its journal refused the write")
        desk = voter_desk(in_doubt())
        desk.slow = True
        desk.ask(commit(ONE))
        out = desk.feed(Written(desk.waiting.pop(), WriteVerdict.REFUSED, desk.record))
        assert (len(replies(out)), desk.waiting) == (1, [])

    def test_requests_that_wait_are_bounded(self) -> None:
        desk = voter_desk()
        for n in range(SESSIONS_MAX):
            desk.ask(prepare(TWO, attempt=n + 1))
        (reply,) = replies(desk.ask(prepare(TWO, attempt=999)))
        assert isinstance(reply, Vote)
        assert reply.kind is VoteKind.LAGGING
        assert isinstance(replies(desk.ask(commit(TWO)))[0], Acknowledged)


class TestCommits:
    def test_v3_the_own_accepted_change_is_committed_whatever_the_ballots(self) -> None:
        desk = voter_desk(in_doubt(7))
        (reply,) = replies(desk.ask(commit(ONE)))
        assert reply == Acknowledged(REPOSITORY, ONE.position)
        assert desk.record.promised == ballot(7)

    def test_v3_a_known_commit_is_acknowledged_and_its_certificate_kept(self) -> None:
        desk = voter_desk()
        desk.learn(ONE)
        out = desk.ask(commit(ONE))
        assert only(Witness, out)
        assert replies(out) == [Acknowledged(REPOSITORY, ONE.position)]

    def test_v3_another_digest_at_the_own_version_is_an_alarm_and_ends_voting(self) -> None:
        desk = voter_desk()
        desk.learn(ONE)
        assert only(Alarm, desk.ask(commit(change("other"))))[0].stop
        assert isinstance(replies(desk.ask(prepare(TWO)))[0], Refused)
        assert isinstance(replies(desk.ask(claim(9)))[0], Refused)

    def test_v3_another_accepted_change_is_not_committed_by_it(self) -> None:
        desk = voter_desk(in_doubt())
        out = desk.ask(commit(change("other")))
        assert (desk.record.committed, len(only(CatchUp, out))) == (BASE, 1)

    def test_v3_what_is_missing_is_caught_up(self) -> None:
        desk = voter_desk()
        out = desk.ask(commit(TWO))
        assert only(CatchUp, out)[0].told == TWO.position
        desk.learn(ONE)
        assert Acknowledged(REPOSITORY, TWO.position) in replies(desk.learn(TWO))


class TestAborts:
    def test_v4_no_change_is_accepted_and_its_ballot_kept(self) -> None:
        desk = voter_desk()
        desk.ask(prepare(ONE))
        reply = one_vote(desk, abort())
        assert (reply.kind, reply.none, reply.position) == (VoteKind.YES, True, BASE)
        assert desk.record.accepted is not None
        assert (desk.record.accepted.change, desk.record.accepted_ballot) == (None, ballot(1, A, 2))
        assert isinstance(replies(desk.ask(prepare(ONE)))[0], Refused)

    def test_v4_it_may_drop_the_stage(self) -> None:
        desk = voter_desk()
        desk.ask(prepare(PACKED))
        desk.feed(ObjectsStaged(PACKED.position.digest))
        assert [effect.change for effect in only(Discard, desk.ask(abort()))] == [PACKED]

    def test_o4_an_abort_does_not_drop_what_a_higher_ballot_is_about_to_accept(self) -> None:
        desk = voter_desk()
        desk.slow = True
        desk.ask(prepare(PACKED, attempt=3))
        desk.ask(abort(attempt=2))
        desk.feed(ObjectsStaged(PACKED.position.digest))
        out = desk.write()
        assert only(Discard, out) == []
        assert desk.record.in_doubt == PACKED

    def test_o4_a_commit_drops_the_stage_of_what_lost_its_place(self) -> None:
        desk = voter_desk()
        desk.ask(prepare(PACKED))
        desk.feed(ObjectsStaged(PACKED.position.digest))
        out = desk.learn(change("other"))
        assert [effect.change for effect in only(Discard, out)] == [PACKED]
        assert [effect.change for effect in only(Undone, out)] == [PACKED]


class TestDoubt:
    def test_r1_a_doubt_that_lasts_is_settled_and_asked_for_again(self) -> None:
        desk = voter_desk()
        desk.ask(prepare(ONE))
        assert only(Settle, desk.tick(TIMING.prepare_s - 0.01)) == []
        out = desk.tick(TIMING.prepare_s)
        assert len(only(Settle, out)) == 1
        assert min(wishes(out)) > TIMING.prepare_s
        assert len(only(Settle, desk.tick(2 * TIMING.prepare_s))) == 1

    def test_r1_a_doubt_survives_a_restart(self) -> None:
        desk = voter_desk(in_doubt())
        assert wishes(desk.tick(0.0))
        assert only(Settle, desk.tick(TIMING.prepare_s))

    def test_a_voter_set_aside_asks_for_nothing_more(self) -> None:
        desk = voter_desk()
        desk.ask(prepare(ONE))
        desk.ask(claim(2, C), C, now=0.1)
        out = desk.feed(SetAside("alarm"))
        assert isinstance(replies(out)[0], Refused)
        assert (wishes(desk.tick(9.0)), only(Settle, desk.tick(9.0))) == ([], [])

    def test_settled_is_quiet(self) -> None:
        desk = voter_desk()
        desk.ask(prepare(ONE))
        desk.ask(commit(ONE))
        assert wishes(desk.tick(9.0)) == []


def test_another_voter_set_is_refused_and_raises_an_alarm() -> None:
    desk = voter_desk()
    out = desk.ask(replace(claim(1), voters=VoterSet.of([A, B]).digest))
    assert isinstance(replies(out)[0], Refused)
    assert only(Alarm, out)
    assert desk.record.promised == RECORD.promised


def test_a_base_with_another_digest_at_the_own_version_is_an_alarm() -> None:
    out = voter_desk().ask(abort(base=Position(1, Digest("1" * 64))))
    assert only(Alarm, out)[0].stop


def test_repr_shows_live_state() -> None:
    assert "in doubt" in repr(Voter(B, 1, in_doubt(), REGISTER, TIMING, now=0.0))
