"""Which answers count when a node came back in a newer incarnation (R4): the rule in bold, at every place that counts."""

from dataclasses import replace

from node.protocol.coordinator_states import State
from node.protocol.effects import Decide
from node.protocol.events import Enrolled
from node.protocol.ids import ORIGIN
from node.protocol.incarnations import merged, newest, stale
from node.protocol.messages import Promise, Status, Vote
from node.protocol.reads import fresh
from tests.scenarios.values import REPOSITORY
from tests.unit.desk import Desk, claim, coordinator_desk, prepare, promise, replies, sent, vote, voter_desk
from tests.unit.machine_values import BASE, TIMING, VOTERS, A, B, C, ballot, change, only, submitted
from tests.unit.test_coordinator import change as made
from tests.unit.test_coordinator import state

YES = replace(vote(made("t1")), quorum=3)


def answer(incarnation: int = 1, *known: tuple[str, int]) -> Status:
    table = tuple((node, number) for node, number in known)
    return Status(REPOSITORY, VOTERS.digest, incarnation, BASE, ballot(1), ORIGIN, False, 1, table)  # type: ignore[arg-type]


def preparing() -> Desk:
    desk = coordinator_desk(quorum="all")
    desk.feed(submitted("t1"))
    desk.hear(promise())
    assert state(desk) is State.PREPARING
    return desk


def test_a_table_knows_the_newest_of_each_node_and_first_incarnations_are_not_named() -> None:
    assert merged(((A, 1), (B, 3)), ((B, 2), (C, 2))) == ((B, 3), (C, 2))
    assert newest(((B, 3),), B) == 3
    assert newest(((B, 3),), C) == 1


def test_an_answer_is_stale_when_any_member_knows_a_newer_incarnation_of_its_sender() -> None:
    assert stale({A: answer(), B: answer()}) == frozenset()
    assert stale({A: answer(1, (B, 2)), B: answer(), C: answer()}) == {B}
    assert stale({A: answer(1, (B, 2)), B: answer(2), C: answer(2)}) == frozenset()
    assert stale({A: answer(), B: answer()}, own=((B, 2),)) == {B}
    assert stale({A: answer(), B: answer(1, (A, 2))}) == {A}  # the own answer is a member's too


def test_a_read_counts_fresh_answers_only() -> None:
    answers = {A: answer(1, (B, 2)), B: answer(), C: answer()}
    assert set(fresh(answers)) == {A, C}
    assert set(fresh({B: answer()}, own=((B, 2),))) == set()


def test_promises_and_votes_carry_the_incarnations_that_are_durable_here() -> None:
    desk = voter_desk()
    desk.feed(Enrolled(C, 2))
    promised, *_ = replies(desk.ask(claim(1)))
    assert isinstance(promised, Promise)
    assert promised.incarnations == ((C, 2),)
    voted, *_ = replies(desk.ask(prepare(change("t1"))))
    assert isinstance(voted, Vote)
    assert voted.incarnations == ((C, 2),)


def test_a_vote_of_an_older_life_is_not_counted_once_its_successor_is_durable_here() -> None:
    desk = coordinator_desk()
    desk.feed(submitted("t1"))
    desk.hear(promise())
    desk.feed(Enrolled(B, 2))
    assert only(Decide, desk.hear(vote(made("t1")), B)) == []
    assert len(only(Decide, desk.hear(replace(vote(made("t1")), incarnation=2), B))) == 1


def test_a_vote_that_was_counted_is_dropped_when_another_vote_knows_its_successor() -> None:
    desk = preparing()
    desk.hear(YES, B)
    assert "2 yes" in repr(desk.machine)
    assert only(Decide, desk.hear(replace(YES, incarnations=((B, 2),)), C)) == []
    assert "2 yes" in repr(desk.machine)  # this node's and C's
    assert len(only(Decide, desk.hear(replace(YES, incarnation=2), B))) == 1


def test_whose_old_vote_was_dropped_is_asked_again() -> None:
    desk = preparing()
    desk.hear(YES, B)
    desk.feed(Enrolled(B, 2))
    effects = desk.tick(TIMING.resend_s + 0.01)
    assert ("prepare", B) in sent(effects)


def test_a_promise_of_an_older_life_is_no_part_of_a_majority() -> None:
    desk = coordinator_desk()
    desk.feed(Enrolled(B, 2))
    desk.feed(submitted("t1"))
    desk.hear(promise(), B)
    assert state(desk) is State.CLAIMING
    desk.hear(replace(promise(), incarnation=2), B)
    assert state(desk) is State.PREPARING


def test_a_node_whose_successor_is_known_counts_no_longer_even_its_own_answers() -> None:
    desk = coordinator_desk()
    desk.feed(submitted("t1"))
    desk.hear(replace(promise(), incarnations=((A, 2),)), B)
    assert state(desk) is State.CLAIMING


def test_a_decision_that_was_counted_stays_one() -> None:
    desk = coordinator_desk()
    desk.feed(submitted("t1"))
    desk.hear(promise())
    assert len(only(Decide, desk.hear(vote(made("t1")), B))) == 1
    before = state(desk)
    desk.feed(Enrolled(B, 2))
    assert state(desk) is before
