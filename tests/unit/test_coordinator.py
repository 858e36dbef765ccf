"""The coordinator, rule by rule (replication.md C1–C8, R1). The journal on the desk obeys ``acceptor.py``."""

from dataclasses import replace

import pytest

from node.protocol.acceptor import AcceptOp, AcceptorRecord, PromiseOp, WriteVerdict
from node.protocol.change import Change
from node.protocol.coordinator import QUEUE_MAX, Coordinator
from node.protocol.coordinator_states import TRANSITIONS, State, Trigger
from node.protocol.effects import Alarm, Answer, CatchUp, Decide, Effect, StageObjects, Undone
from node.protocol.events import ObjectsStaged, SetAside, SettleNow, Suspected, Written
from node.protocol.ids import NodeId, RefName
from node.protocol.messages import VoteKind
from node.protocol.outcome import OutcomeKind
from node.protocol.quorum import VoterSet
from tests.scenarios.values import REPOSITORY
from tests.unit import machine_values
from tests.unit.desk import Desk, coordinator_desk, promise, refused, sent, vote, wishes
from tests.unit.machine_values import BASE, RECORD, REGISTER, TIMING, A, B, C, ballot, only, submitted

DEADLINE = TIMING.prepare_s


def change(txn: str) -> Change:
    """What the coordinator makes of ``submitted(txn)``: the first branch of a repository becomes its HEAD."""
    made = machine_values.change(txn)
    return replace(made, requests=(replace(made.requests[0], head=RefName(f"refs/heads/{txn}")),))


def state(desk: Desk) -> State:
    assert isinstance(desk.machine, Coordinator)
    return desk.machine.state


def told(effects: list[Effect]) -> list[tuple[str, OutcomeKind]]:
    return [(effect.submitted, effect.outcome.kind) for effect in only(Answer, effects)]


def owning() -> Desk:
    """A desk whose coordinator owns round 1, with nothing in flight: a first push was rejected for its old value."""
    desk = coordinator_desk()
    desk.feed(submitted("t0", old="x"))
    desk.hear(promise())
    assert state(desk) is State.OWNING
    return desk


def preparing(txn: str = "t1", deadline_at: float = DEADLINE) -> Desk:
    """A desk that counts votes for ``txn`` at 1.node-1.1."""
    desk = owning()
    desk.feed(submitted(txn, deadline_at))
    assert state(desk) is State.PREPARING
    return desk


def found(record: AcceptorRecord | None = None) -> Desk:
    """A desk that prepares a change found by its claim of round 3."""
    desk = coordinator_desk()
    desk.feed(SettleNow(BASE.version))
    desk.feed(submitted("mine", 9.0))
    desk.hear(promise(record or accepted(2, B, "lost"), 1))
    desk.feed(ObjectsStaged(change("lost").position.digest))
    assert state(desk) is State.PREPARING
    return desk


def accepted(round_: int, node: NodeId, txn: str | None) -> AcceptorRecord:
    return AcceptOp(REPOSITORY, ballot(round_, node), BASE, change(txn) if txn else None).on(RECORD)[0]


def my_change(desk: Desk) -> object:
    assert desk.record.accepted is not None
    return desk.record.accepted.change


class TestTable:
    def test_every_state_has_a_row(self) -> None:
        assert set(TRANSITIONS) == set(State)

    def test_stopped_is_never_left(self) -> None:
        assert set(TRANSITIONS[State.STOPPED].values()) == {State.STOPPED}

    def test_every_trigger_is_used_and_every_state_is_reachable(self) -> None:
        assert {trigger for row in TRANSITIONS.values() for trigger in row} == set(Trigger)
        reached, edge = {State.IDLE}, {State.IDLE}
        while edge:
            edge = {after for here in edge for after in TRANSITIONS[here].values()} - reached
            reached |= edge
        assert reached == set(State)

    @pytest.mark.parametrize("here", State)
    def test_ownership_can_be_lost_and_an_alarm_raised_in_every_state(self, here: State) -> None:
        assert {Trigger.LOST, Trigger.ALARM} <= set(TRANSITIONS[here])


class TestGroupCommit:
    def test_c1_one_change_in_flight_and_what_waits_is_the_next(self) -> None:
        desk = preparing()
        assert sent(desk.feed(submitted("t2")) + desk.feed(submitted("t3"))) == []
        desk.hear(vote(change("t1")))
        assert desk.record.in_doubt is not None
        assert desk.record.in_doubt.txns == ("t2", "t3")

    def test_c1_what_refuses_a_single_push_is_decided_before_the_prepare(self) -> None:
        desk = owning()
        out = desk.feed(submitted("t1", old="x"))
        assert (told(out), sent(out), state(desk)) == ([("t1", OutcomeKind.REJECTED)], [], State.OWNING)

    def test_c1_after_a_no_the_batch_is_formed_again_singly(self) -> None:
        desk = preparing("t0x")
        desk.feed(submitted("t1"))
        desk.feed(submitted("t2"))
        desk.hear(vote(change("t0x")))
        assert desk.record.in_doubt is not None
        batch = desk.record.in_doubt
        assert batch.txns == ("t1", "t2")
        desk.hear(vote(batch, attempt=2, kind=VoteKind.NO, reason="disk full"), B)
        desk.hear(vote(batch, attempt=2, kind=VoteKind.NO, reason="disk full"), C)
        none = replace(vote(None, attempt=3), position=desk.register.position)
        desk.hear(none, B)
        assert desk.record.in_doubt is not None
        assert desk.record.in_doubt.txns == ("t1.2",)

    def test_the_queue_is_bounded(self) -> None:
        desk = preparing()
        for n in range(QUEUE_MAX):
            assert told(desk.feed(submitted(f"q{n}"))) == []
        assert told(desk.feed(submitted("more"))) == [("more", OutcomeKind.ABORTED)]


class TestOwning:
    def test_c2_the_own_promise_is_durable_before_the_claim_is_sent(self) -> None:
        desk = coordinator_desk()
        desk.slow = True
        assert sent(desk.feed(submitted("t1"))) == []
        assert sent(desk.write()) == [("claim", B), ("claim", C)]
        assert desk.record.promised == ballot(1, A, 0)

    def test_c2_after_a_restart_a_higher_round_is_claimed(self) -> None:
        desk = coordinator_desk(accepted(7, A, "t9"))
        desk.feed(submitted("t1"))
        assert desk.record.promised == ballot(8, A, 0)

    def test_c2_a_majority_of_promises_owns(self) -> None:
        desk = coordinator_desk()
        desk.feed(submitted("t1"))
        assert state(desk) is State.CLAIMING
        desk.hear(promise())
        assert state(desk) is State.PREPARING

    def test_c2_two_of_five_own_nothing(self) -> None:
        five = VoterSet.of(NodeId(f"node-{n}") for n in range(1, 6))
        desk = Desk(Coordinator(A, RECORD, replace(REGISTER, voters=five), TIMING), RECORD)
        desk.feed(submitted("t1"))
        desk.hear(replace(promise(), voters=five.digest))
        desk.hear(replace(promise(), voters=five.digest))
        assert state(desk) is State.CLAIMING
        desk.hear(replace(promise(), voters=five.digest), C)
        assert state(desk) is State.PREPARING

    def test_c2_promises_at_another_ballot_or_of_strangers_do_not_count(self) -> None:
        desk = coordinator_desk()
        desk.feed(submitted("t1"))
        desk.hear(promise(round_=9))
        desk.hear(promise(), NodeId("node-9"))
        desk.hear(promise(), A)
        assert state(desk) is State.CLAIMING

    def test_c2_an_own_promise_that_is_refused_claims_nothing(self) -> None:
        desk = coordinator_desk()
        desk.slow = True
        desk.feed(submitted("t1"))
        desk.record = PromiseOp(REPOSITORY, ballot(5, C, 0)).on(desk.record)[0]
        assert sent(desk.write()) == []
        assert state(desk) is State.WAITING

    def test_a_claim_is_sent_again_to_whoever_has_not_promised(self) -> None:
        desk = coordinator_desk()
        out = desk.feed(submitted("t1"))
        assert TIMING.resend_s in wishes(out)
        assert sent(desk.tick(TIMING.resend_s)) == [("claim", B), ("claim", C)]

    def test_a_claim_that_nobody_answers_is_given_up_and_tried_at_a_higher_round(self) -> None:
        desk = coordinator_desk()
        desk.feed(submitted("t1", 30.0))
        desk.tick(DEADLINE)
        assert state(desk) is State.WAITING
        desk.tick(DEADLINE + TIMING.backoff_max_s)
        assert (state(desk), desk.record.promised) == (State.CLAIMING, ballot(2, A, 0))


class TestAfterAClaim:
    def test_c3_it_catches_up_to_the_highest_committed_version_first(self) -> None:
        desk = coordinator_desk()
        desk.feed(submitted("t2"))
        ahead = replace(promise(), committed=change("t1").position)
        out = desk.hear(ahead)
        assert (state(desk), only(CatchUp, out)[0].told) == (State.LEARNING, ahead.committed)
        desk.learn(change("t1"))
        assert desk.record.in_doubt is not None
        assert desk.record.in_doubt.base == ahead.committed

    def test_c3_another_digest_at_the_own_version_is_an_alarm(self) -> None:
        desk = coordinator_desk()
        desk.learn(change("t1"))
        desk.feed(submitted("t2"))
        out = desk.hear(replace(promise(), committed=change("other").position))
        assert (state(desk), only(Alarm, out)[0].stop) == (State.STOPPED, True)

    def test_c3_a_found_change_is_staged_and_finished_first(self) -> None:
        desk = coordinator_desk()
        desk.feed(submitted("mine", 9.0))
        out = desk.hear(promise(accepted(1, B, "lost")))
        assert only(StageObjects, out)[0].change == change("lost")
        out = desk.feed(ObjectsStaged(change("lost").position.digest))
        assert sent(out) == [("prepare", B), ("prepare", C)]
        assert my_change(desk) == change("lost")
        desk.hear(vote(change("lost")))
        assert desk.record.in_doubt is not None
        assert desk.record.in_doubt.txns == ("mine",)

    def test_c3_objects_that_nobody_has_are_no_reason_to_propose_anything(self) -> None:
        desk = coordinator_desk()
        desk.feed(submitted("mine", 9.0))
        desk.hear(promise(accepted(1, B, "lost")))
        out = desk.feed(ObjectsStaged(change("lost").position.digest, "nobody has them"))
        assert (state(desk), sent(out), desk.record.accepted) == (State.WAITING, [], None)

    def test_c3_the_highest_ballot_counts(self) -> None:
        desk = coordinator_desk(accepted(1, A, "low"))
        desk.feed(submitted("mine", 9.0))
        desk.hear(replace(promise(accepted(1, B, "high"), 2)))
        desk.feed(ObjectsStaged(change("high").position.digest))
        assert my_change(desk) == change("high")

    @pytest.mark.parametrize("now", [DEADLINE + 1, 60.0])
    def test_c3_a_found_change_is_never_aborted_and_never_replaced_by_none(self, now: float) -> None:
        desk = found()
        out = desk.tick(now)
        assert (state(desk), sent(out)) == (State.PREPARING, [("prepare", B), ("prepare", C)])
        assert my_change(desk) == change("lost")

    def test_c3_not_even_when_so_many_say_no_that_a_quorum_seems_impossible(self) -> None:
        desk = found()
        for peer in (B, C):
            desk.hear(vote(change("lost"), kind=VoteKind.NO, reason="objects"), peer)
        assert (state(desk), my_change(desk)) == (State.PREPARING, change("lost"))
        assert sent(desk.tick(TIMING.resend_s)) == [("prepare", B), ("prepare", C)]

    def test_c3_not_even_if_this_node_proposed_it_in_an_earlier_round(self) -> None:
        desk = preparing("mine", 9.0)
        desk.hear(refused(1, 1, 5, C), C)
        mine = desk.record.accepted
        desk.tick(1.0)
        desk.hear(promise(replace(RECORD, promised=ballot(1), accepted=mine), 6))
        desk.feed(ObjectsStaged(change("mine").position.digest))
        desk.tick(60.0)
        assert (state(desk), my_change(desk)) == (State.PREPARING, change("mine"))

    def test_c3_none_is_proposed_where_a_lower_record_carries_a_change(self) -> None:
        desk = coordinator_desk(accepted(1, A, "low"))
        desk.feed(submitted("mine", 9.0))
        out = desk.hear(promise(accepted(1, C, None), 2))
        assert (sent(out), my_change(desk)) == ([("abort", B), ("abort", C)], None)
        out = desk.hear(vote(None, 2))
        assert [effect.change for effect in only(Undone, out)] == [change("low")]

    def test_c3_who_came_to_settle_proposes_none_although_nothing_was_found(self) -> None:
        desk = coordinator_desk()
        desk.feed(SettleNow(BASE.version))
        assert sent(desk.hear(promise())) == [("abort", B), ("abort", C)]
        desk.hear(vote(None))
        assert state(desk) is State.OWNING
        assert isinstance(desk.machine, Coordinator)
        assert not desk.machine.busy

    def test_c3_nothing_seen_nothing_to_finish(self) -> None:
        assert owning().record.accepted is None


class TestDecision:
    def test_c4_the_own_vote_is_durable_before_the_prepare_is_sent(self) -> None:
        desk = owning()
        desk.slow = True
        assert sent(desk.feed(submitted("t1"))) == []
        assert sent(desk.write()) == [("prepare", B), ("prepare", C)]

    def test_c4_a_quorum_of_counted_votes_decides(self) -> None:
        desk = preparing()
        out = desk.hear(vote(change("t1")))
        (decide,) = only(Decide, out)
        assert (decide.change, decide.ballot, [each.node for each in decide.votes]) == (change("t1"), ballot(1), [B])
        assert ("commit", B) in sent(out)
        assert ("commit", C) in sent(out)

    def test_c4_the_client_waits_only_a_moment_for_the_others_votes(self) -> None:
        desk = preparing()
        assert told(desk.hear(vote(change("t1")))) == []
        assert told(desk.tick(TIMING.grace_s)) == [("t1", OutcomeKind.COMMITTED)]
        desk = preparing()
        desk.hear(vote(change("t1")))
        out = desk.hear(vote(change("t1")), C)
        assert (told(out), only(Answer, out)[0].outcome.confirmed) == ([("t1", OutcomeKind.COMMITTED)], 3)

    def test_c4_late_votes_after_the_next_attempt_was_issued_are_dropped(self) -> None:
        desk = preparing()
        desk.slow = True
        desk.tick(DEADLINE)
        for peer in (B, C):
            assert only(Decide, desk.hear(vote(change("t1")), peer)) == []
        desk.write()
        for peer in (B, C):
            assert only(Decide, desk.hear(vote(change("t1")), peer)) == []
        assert told(desk.hear(vote(None, attempt=2))) == [("t1", OutcomeKind.ABORTED)]

    def test_c4_votes_of_another_ballot_or_for_another_value_do_not_count(self) -> None:
        desk = preparing()
        for late in (vote(change("t1"), attempt=2), vote(change("t1"), round_=2), vote(None)):
            assert only(Decide, desk.hear(late)) == []
        assert only(Alarm, desk.hear(vote(change("other"))))
        assert only(Alarm, desk.hear(replace(vote(change("t1")), quorum=3)))
        assert only(Alarm, desk.hear(replace(vote(change("t1")), voters=VoterSet.of([A, B]).digest)))
        assert only(Decide, desk.hear(vote(change("t1")), NodeId("node-9"))) == []
        assert state(desk) is State.PREPARING

    def test_c4_equal_records_in_promises_decide_nothing(self) -> None:
        desk = coordinator_desk(accepted(1, C, "t9"))
        desk.feed(SettleNow())
        out = desk.hear(promise(accepted(1, C, "t9"), 2))
        assert only(Decide, out) == []
        assert state(desk) is State.FETCHING

    def test_c4_a_refusal_while_the_decision_is_written_does_not_keep_the_commit_from_being_sent(self) -> None:
        desk = preparing()
        desk.slow = True
        desk.hear(vote(change("t1")))
        desk.hear(refused(1, 1, 5, C), C)
        assert sent(desk.write())[:2] == [("commit", B), ("commit", C)]

    def test_a_raised_quorum_is_waited_for(self) -> None:
        desk = coordinator_desk(quorum="all")
        desk.feed(submitted("t1"))
        desk.hear(promise())
        three = replace(vote(change("t1")), quorum=3)
        assert only(Decide, desk.hear(three)) == []
        assert only(Decide, desk.hear(three, C))


class TestAbort:
    def test_c5_an_own_new_change_that_misses_its_deadline_is_aborted_at_the_next_attempt(self) -> None:
        desk = preparing()
        out = desk.tick(DEADLINE)
        assert (state(desk), sent(out)) == (State.ABORTING, [("abort", B), ("abort", C)])
        assert (desk.record.accepted_ballot, my_change(desk)) == (ballot(1, A, 2), None)

    def test_c5_noes_that_make_a_quorum_impossible_abort_it_at_once(self) -> None:
        desk = preparing()
        for peer in (B, C):
            desk.hear(vote(change("t1"), kind=VoteKind.NO, reason="disk full"), peer)
        assert state(desk) is State.ABORTING
        out = desk.hear(vote(None, attempt=2))
        assert "node-2 refused: disk full" in only(Answer, out)[0].outcome.reason

    def test_c5_a_blocking_set_makes_it_certain_and_less_does_not(self) -> None:
        desk = preparing()
        assert told(desk.tick(DEADLINE)) == []
        assert told(desk.hear(vote(None, attempt=2))) == [("t1", OutcomeKind.ABORTED)]

    def test_c5_with_two_voters_and_the_peer_dead_the_own_vote_suffices(self) -> None:
        two = VoterSet.of([A, B])
        desk = Desk(Coordinator(A, RECORD, replace(REGISTER, voters=two), TIMING), RECORD)
        desk.feed(submitted("t1"))
        desk.hear(replace(promise(), voters=two.digest))
        assert told(desk.tick(DEADLINE)) == [("t1", OutcomeKind.ABORTED)]

    def test_c5_not_even_that_is_unknown_and_settled_in_the_background(self) -> None:
        desk = preparing()
        desk.tick(DEADLINE)
        assert told(desk.tick(DEADLINE + TIMING.abort_s)) == [("t1", OutcomeKind.UNKNOWN)]
        assert sent(desk.tick(DEADLINE + 1.5)) == [("abort", B), ("abort", C)]
        assert told(desk.hear(vote(None, attempt=2))) == [("t1", OutcomeKind.ABORTED)]

    @pytest.mark.parametrize("kind", [VoteKind.LAGGING, VoteKind.BEHIND_COORDINATOR, VoteKind.ALREADY_COMMITTED])
    def test_c5_what_is_not_a_no_aborts_nothing(self, kind: VoteKind) -> None:
        desk = preparing()
        for peer in (B, C):
            desk.hear(vote(change("t1"), kind=kind), peer)
        assert state(desk) is State.PREPARING
        out = desk.hear(replace(vote(change("t1"), kind=kind), committed=change("t9").position))
        assert len(only(CatchUp, out)) == 1

    def test_c5_a_voter_that_does_not_vote_any_more_is_a_no(self) -> None:
        desk = preparing()
        for peer in (B, C):
            desk.hear(refused(1, 1, 1, A, 0, "not voting: alarm"), peer)
        assert state(desk) is State.ABORTING


class TestOwnershipLost:
    def test_c6_a_refusal_by_a_higher_round_loses_it_and_proposes_nothing(self) -> None:
        desk = preparing()
        out = desk.hear(refused(1, 1, 5, C), C)
        assert (state(desk), sent(out), told(out)) == (State.WAITING, [], [])
        assert only(Decide, desk.hear(vote(change("t1")))) == []

    def test_c6_the_own_voters_promise_to_another_loses_it(self) -> None:
        desk = preparing()
        desk.foreign(PromiseOp(REPOSITORY, ballot(2, C, 0)))
        assert state(desk) is State.WAITING

    def test_c6_a_refusal_that_names_an_own_higher_attempt_is_ignored(self) -> None:
        desk = preparing()
        desk.hear(refused(1, 1, 1, A, 2), C)
        assert state(desk) is State.PREPARING

    def test_c6_the_outcome_is_read_from_history(self) -> None:
        desk = preparing()
        desk.hear(refused(1, 1, 5, C), C)
        assert told(desk.learn(change("t1"))) == [("t1", OutcomeKind.COMMITTED)]

    def test_c6_another_change_in_its_place_is_certain_abort_and_only_then_it_is_tried_again_under_a_new_id(self) -> None:
        desk = preparing("t1", 9.0)
        desk.hear(refused(1, 1, 5, C), C)
        assert told(desk.learn(change("other"))) == []
        desk.tick(1.0)
        desk.hear(replace(promise(round_=6), committed=change("other").position))
        assert desk.record.in_doubt is not None
        assert (desk.record.in_doubt.txns, desk.record.in_doubt.base) == (("t1.2",), change("other").position)

    def test_c6_absent_on_this_node_is_unknown_never_aborted(self) -> None:
        desk = preparing()
        desk.hear(refused(1, 1, 5, C), C)
        assert told(desk.tick(DEADLINE + TIMING.abort_s)) == [("t1", OutcomeKind.UNKNOWN)]

    def test_c6_a_doubt_of_ones_own_is_finished_where_it_is_found_again(self) -> None:
        desk = preparing()
        desk.hear(refused(1, 1, 5, C), C)
        desk.tick(1.0)
        desk.hear(promise(round_=6))
        assert state(desk) is State.FETCHING

    def test_c6_a_doubt_of_ones_own_that_no_change_replaced_is_made_certain_by_none(self) -> None:
        desk = preparing()
        desk.hear(refused(1, 1, 5, C), C)
        desk.tick(1.0)
        assert sent(desk.hear(promise(accepted(5, C, None), 6))) == [("abort", B), ("abort", C)]
        assert told(desk.tick(3.0)) == [("t1", OutcomeKind.UNKNOWN)]
        assert told(desk.hear(vote(None, 6))) == [("t1", OutcomeKind.ABORTED)]

    def test_an_acceptance_refused_by_a_failing_disk_stays_in_doubt(self) -> None:
        """It may be found on that disk yet: to try it again under another id would commit it twice."""
        desk = owning()
        desk.slow = True
        desk.feed(submitted("t1"))
        out = desk.feed(Written(desk.waiting.pop(), WriteVerdict.REFUSED, desk.record))
        assert told(out) == []
        assert told(desk.tick(DEADLINE + TIMING.abort_s)) == [("t1", OutcomeKind.UNKNOWN)]

    def test_an_acceptance_refused_for_a_higher_promise_is_tried_again(self) -> None:
        desk = owning()
        desk.slow = True
        desk.feed(submitted("t1", 9.0))
        desk.foreign(PromiseOp(REPOSITORY, ballot(4, C, 0)))
        desk.write()
        desk.slow = False
        desk.tick(1.0)
        desk.hear(promise(round_=5))
        assert desk.record.in_doubt is not None
        assert desk.record.in_doubt.txns == ("t1.2",)


class TestFailFast:
    def test_c8_fewer_than_a_quorum_alive_is_refused_at_once_and_nothing_is_sent(self) -> None:
        desk = coordinator_desk()
        desk.feed(Suspected(frozenset({B, C})))
        out = desk.feed(submitted("t1"))
        assert (told(out), sent(out), desk.record) == ([("t1", OutcomeKind.ABORTED)], [], RECORD)
        assert not only(Answer, out)[0].outcome.sent

    def test_c8_suspected_peers_are_not_waited_for(self) -> None:
        desk = preparing()
        desk.feed(Suspected(frozenset({C})))
        assert told(desk.hear(vote(change("t1")))) == [("t1", OutcomeKind.COMMITTED)]

    def test_c8_a_quorum_out_of_reach_ends_the_wait(self) -> None:
        desk = preparing()
        desk.feed(Suspected(frozenset({B, C})))
        assert state(desk) is State.ABORTING

    def test_c8_the_quorum_is_never_reduced(self) -> None:
        desk = coordinator_desk(quorum="all")
        desk.feed(Suspected(frozenset({C})))
        assert told(desk.feed(submitted("t1"))) == [("t1", OutcomeKind.ABORTED)]

    def test_nobody_waits_longer_than_the_deadline(self) -> None:
        desk = coordinator_desk()
        desk.feed(submitted("t1"))
        assert told(desk.tick(DEADLINE)) == [("t1", OutcomeKind.ABORTED)]


class TestSettling:
    def test_r1_nothing_in_doubt_is_nothing_to_settle(self) -> None:
        desk = coordinator_desk()
        desk.feed(SettleNow())
        assert state(desk) is State.IDLE

    def test_r1_an_own_doubt_is_claimed_for(self) -> None:
        desk = coordinator_desk(accepted(1, C, "t9"))
        assert sent(desk.feed(SettleNow())) == [("claim", B), ("claim", C)]

    def test_r5_a_reader_settles_what_it_saw_elsewhere_even_while_the_round_is_owned(self) -> None:
        desk = owning()
        assert sent(desk.feed(SettleNow(BASE.version))) == [("abort", B), ("abort", C)]
        desk = coordinator_desk()
        desk.feed(SettleNow(BASE.version - 1))
        assert state(desk) is State.IDLE


class TestSetAside:
    def test_what_waits_is_refused_and_nothing_is_proposed_any_more(self) -> None:
        desk = preparing()
        desk.feed(submitted("t2"))
        assert told(desk.feed(SetAside("alarm"))) == [("t2", OutcomeKind.ABORTED)]
        assert told(desk.feed(submitted("t3"))) == [("t3", OutcomeKind.ABORTED)]
        assert told(desk.tick(DEADLINE + TIMING.abort_s)) == [("t1", OutcomeKind.UNKNOWN)]
        assert wishes(desk.tick(60.0)) == []

    def test_divergence_on_the_own_disk_is_an_alarm(self) -> None:
        desk = preparing()
        op = AcceptOp(REPOSITORY, ballot(1), BASE, change("other"))
        assert only(Alarm, desk.foreign(op))[0].stop


def test_no_wish_is_in_the_past() -> None:
    for desk in (owning(), preparing(), found()):
        for now in (0.5, 1.0, 2.0, 2.7, 9.0):
            assert all(at > now for at in wishes(desk.tick(now)[-1:]))


def test_repr_shows_live_state() -> None:
    assert repr(preparing().machine) == "<Coordinator alice/project PREPARING <Proposal NEW 1.node-1.1 1 yes 0 no of 2>>"
