"""The machine of a rejoining node, rule by rule (replication.md R4): events in, effects out, no clock, no chance."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import pytest

from node.protocol.acceptor import Accepted
from node.protocol.effects import Wake
from node.protocol.events import Tick
from node.protocol.ids import NO_BALLOT, ORIGIN, Digest, NodeId, Position, RepoId
from node.protocol.incarnations import Incarnations
from node.protocol.messages import AcceptorPage, AcceptorRecords, Enrol, Enrolment, HeldRecord
from node.protocol.quorum import VoterSet
from node.protocol.rejoin import (
    ANSWER_S,
    PAUSE_S_MAX,
    RESTORES_MAX,
    TRIES_MAX,
    Answered,
    Ask,
    Begin,
    Clear,
    Cleared,
    Keep,
    Kept,
    Rejoin,
    RejoinEffect,
    RejoinEvent,
    Restore,
    Restored,
)
from node.protocol.rejoin_states import TRANSITIONS, Step, Trigger
from node.protocol.standing import Life
from tests.scenarios.values import REPOSITORY
from tests.unit.machine_values import BASE, VOTERS, A, B, C, ballot, change, only

FIVE = VoterSet.of(NodeId(f"node-{n}") for n in range(1, 6))
HELD = HeldRecord(REPOSITORY, VOTERS, ballot(2, A, 0), None, BASE)


class Bench:
    """A machine of node-2, and what a driver would do: numbers are kept at once."""

    def __init__(self, members: VoterSet = VOTERS, **more: object) -> None:
        self.machine = Rejoin(B, members, **more)  # type: ignore[arg-type]
        self.now = 0.0

    def feed(self, event: RejoinEvent, after_s: float = 0.0) -> list[RejoinEffect]:
        self.now += after_s
        effects = self.machine.handle(event, self.now)
        for kept in only(Keep, effects):
            effects += self.machine.handle(Kept(kept.incarnation, f"life-{kept.incarnation}"), self.now)
        return effects

    def told(self, node: NodeId, newest: int = 1, *, granted: bool = False) -> list[RejoinEffect]:
        return self.feed(Answered(node, Enrolment(granted, newest)))

    def enrolled(self, *nodes: NodeId) -> list[RejoinEffect]:
        """Up to the question for records."""
        self.feed(Begin())
        for node in nodes:
            self.told(node)
        effects: list[RejoinEffect] = []
        for node in nodes:
            effects = self.told(node, self.machine.incarnation, granted=True)
        return effects

    def page(
        self,
        node: NodeId,
        *records: HeldRecord,
        more: bool = False,
        incarnation: int = 1,
        table: Incarnations = (),
        granted: bool = True,
        life: Life | None = None,
        seen: Mapping[NodeId, Life] = MappingProxyType({}),
    ) -> list[RejoinEffect]:
        page = AcceptorPage(granted, records, more, incarnation, table, life, tuple(seen.items()))
        return self.feed(Answered(node, page))

    @property
    def step(self) -> Step:
        return self.machine.step


def asked(effects: Sequence[RejoinEffect]) -> list[tuple[NodeId, object]]:
    return [(effect.to, effect.message) for effect in only(Ask, effects)]  # type: ignore[arg-type]


def test_it_takes_a_number_above_all_that_a_majority_knows_and_that_it_ever_asked_for() -> None:
    bench = Bench(tried=4)
    assert asked(bench.feed(Begin())) == [(A, Enrol(0, "")), (C, Enrol(0, ""))]
    bench.told(A, 3)
    assert bench.step is Step.ASKING  # itself is not counted: two of three are the two others
    effects = bench.told(C, 2)
    assert only(Keep, effects) == [Keep(5)]
    assert asked(effects) == [(A, Enrol(5, "life-5")), (C, Enrol(5, "life-5"))]
    assert asked(Bench(incarnation=7).feed(Begin()))
    higher = Bench(tried=4)
    higher.feed(Begin())
    higher.told(A, 9)
    assert only(Keep, higher.told(C, 2)) == [Keep(10)]


def test_records_are_asked_of_those_only_who_stored_the_number_first() -> None:
    bench = Bench(FIVE)
    bench.feed(Begin())
    others = [node for node in FIVE.nodes if node != B]
    for node in others[:3]:
        bench.told(node)
    assert bench.step is Step.ENROLLING
    assert asked(bench.told(others[0], 2, granted=True)) == []
    bench.told(others[1], 2, granted=False)  # somebody else's attempt has that number there
    bench.told(others[2], 2, granted=True)
    assert bench.step is Step.ENROLLING
    effects = bench.told(others[3], 2, granted=True)
    wanted = AcceptorRecords(2, "life-2")
    assert asked(effects) == [(node, wanted) for node in (others[0], others[2], others[3])]


def test_a_member_that_knows_a_higher_number_interrupts_the_attempt() -> None:
    bench = Bench()
    bench.feed(Begin())
    bench.told(A)
    bench.told(C)
    bench.told(A, 3)
    assert bench.step is Step.WAITING
    effects = bench.feed(Tick(), PAUSE_S_MAX)
    assert bench.step is Step.ASKING
    assert asked(effects)
    bench.told(A, 3)
    assert only(Keep, bench.told(C)) == [Keep(4)]


def test_silence_interrupts_and_the_next_attempt_asks_for_a_higher_number() -> None:
    bench = Bench()
    bench.feed(Begin())
    bench.told(A)
    bench.told(C)
    bench.told(A, 2, granted=True)
    bench.feed(Tick(), ANSWER_S)
    assert bench.step is Step.WAITING
    assert "node-3" in bench.machine.waits_for
    bench.feed(Tick(), PAUSE_S_MAX)
    bench.told(A, 2)
    assert only(Keep, bench.told(C)) == [Keep(3)]


def test_lists_come_in_pages_and_are_put_together() -> None:
    bench = Bench()
    bench.enrolled(A, C)
    first, second = replace(HELD, repository=RepoId("a/a")), replace(HELD, repository=RepoId("b/b"))
    assert asked(bench.page(A, first, more=True)) == [(A, AcceptorRecords(2, "life-2", "a/a"))]
    assert bench.page(A, first, more=True)  # the same page again changes nothing
    bench.page(A, second)
    assert bench.step is Step.LISTING
    effects = bench.page(C, replace(HELD, repository=RepoId("c/c")))
    assert [restore.repository for restore in only(Restore, effects)] == ["a/a", "b/b", "c/c"]


def test_what_is_restored_is_the_highest_of_everything() -> None:
    bench = Bench()
    bench.enrolled(A, C)
    older, newer = Accepted(ballot(2), BASE, change("t1")), Accepted(ballot(3, C), BASE, change("t2"))
    bench.page(A, replace(HELD, promised=ballot(9, A, 0), accepted=older))
    (restore,) = only(Restore, bench.page(C, replace(HELD, promised=ballot(3, C), accepted=newer)))
    assert (restore.promised, restore.accepted, restore.committed) == (ballot(9, A, 0), newer, BASE)
    assert restore.holders == (A, C)


@pytest.mark.parametrize("version", [BASE.version, BASE.version + 1])
def test_history_is_wanted_only_of_who_gives_it_what_was_accepted_of_everybody(version: int) -> None:
    wrong = Position(version, Digest("f" * 64))
    accepted = Accepted(ballot(3), BASE, change("t1"))
    bench = Bench()
    bench.enrolled(A, C)
    bench.page(A, HeldRecord(REPOSITORY, FIVE, ballot(9, A, 0), accepted, wrong, set_aside=True))
    (restore,) = only(Restore, bench.page(C, HELD))
    assert (restore.promised, restore.accepted, restore.committed) == (ballot(9, A, 0), accepted, BASE)
    assert (restore.voters, restore.holders) == (VOTERS, (C, A))


def test_where_every_source_is_set_aside_the_highest_committed_is_wanted_as_ever() -> None:
    bench = Bench()
    bench.enrolled(A, C)
    bench.page(A, replace(HELD, set_aside=True))
    (restore,) = only(Restore, bench.page(C, replace(HELD, committed=ORIGIN, set_aside=True)))
    assert restore.committed == BASE


def test_a_repository_that_was_only_promised_is_restored_too() -> None:
    bench = Bench()
    bench.enrolled(A, C)
    bench.page(A, HeldRecord(REPOSITORY, VOTERS, ballot(4, C, 0), None, ORIGIN))
    (restore,) = only(Restore, bench.page(C))
    assert (restore.promised, restore.accepted, restore.committed.version) == (ballot(4, C, 0), None, 0)


def test_lists_count_only_while_no_source_knows_a_newer_incarnation_of_another() -> None:
    bench = Bench()
    bench.enrolled(A, C)
    bench.page(A, HELD, table=((C, 2),))
    assert only(Restore, bench.page(C, HELD)) == []
    assert bench.step is Step.WAITING
    other = Bench()
    other.enrolled(A, C)
    other.page(A, HELD, table=((C, 2), (B, 2)))
    assert len(only(Restore, other.page(C, HELD, incarnation=2))) == 1


LIFE = Life(1, "journal", 3, "nonce", 90, began=90)


@pytest.mark.parametrize(
    ("seen", "counts"),
    [
        (LIFE, True),
        (replace(LIFE, writes=95), True),  # seen a moment after it had answered
        (replace(LIFE, boot=2, nonce="before", writes=90), True),
        (replace(LIFE, boot=2, nonce="before", writes=91), False),
        (replace(LIFE, nonce="of the true disk"), False),
        (replace(LIFE, incarnation=2, writes=0, began=0), False),
    ],
)
@pytest.mark.parametrize("reverse", [False, True])
def test_lists_count_only_while_no_source_has_seen_a_newer_life_of_another(seen: Life, counts: bool, reverse: bool) -> None:
    """[node-3 was set back and is not told yet: node-1 refuses its messages, this node has forgotten what it had seen of it]"""
    bench = Bench()
    bench.enrolled(A, C)
    answers = [lambda: bench.page(A, HELD, seen={C: seen}), lambda: bench.page(C, HELD, life=LIFE)]
    first, second = reversed(answers) if reverse else answers
    first()
    assert bool(only(Restore, second())) is counts
    assert (bench.step is Step.LEARNING) is counts


def test_two_sources_that_contradict_each_other_together_show_that_a_third_was_set_back() -> None:
    four = NodeId("node-4")
    bench = Bench(FIVE)
    bench.enrolled(A, C, four)
    now = replace(LIFE, boot=5, nonce="now", began=200, writes=210)
    bench.page(A, HELD, seen={C: replace(LIFE, writes=100)})
    bench.page(four, HELD, seen={C: replace(LIFE, boot=4, nonce="set back", began=95)})
    assert only(Restore, bench.page(C, HELD, life=now)) == []
    assert bench.step is Step.WAITING


def test_an_operator_takes_also_what_a_disk_that_was_set_back_still_holds() -> None:
    bench = Bench(FIVE, sources=frozenset({A, C}))
    bench.feed(Begin())
    for granted in (False, True):
        for node in (A, C):
            bench.told(node, 2 if granted else 1, granted=granted)
        bench.feed(Tick(), ANSWER_S)
    bench.page(A, HELD, seen={C: replace(LIFE, writes=100, boot=2, nonce="before")})
    assert len(only(Restore, bench.page(C, HELD, life=LIFE))) == 1


def test_a_source_that_does_not_know_the_attempt_interrupts_it() -> None:
    bench = Bench()
    bench.enrolled(A, C)
    bench.page(A, granted=False)
    assert bench.step is Step.WAITING


def test_a_majority_of_each_repositorys_own_voters_must_be_among_the_sources() -> None:
    """Members are five; the repository was made when there were three."""
    bench = Bench(FIVE)
    four, five = NodeId("node-4"), NodeId("node-5")
    bench.enrolled(A, four, five)
    bench.page(A, HELD)
    bench.page(four)
    assert only(Restore, bench.page(five)) == []
    assert bench.step is Step.WAITING
    bench.feed(Tick(), PAUSE_S_MAX)
    for node in (A, four, five):
        bench.told(node)
    assert bench.step is Step.ASKING  # the next attempt waits for node-3
    bench.told(C)
    assert bench.step is Step.ENROLLING


def test_the_mark_is_cleared_when_everything_is_restored_and_not_before() -> None:
    bench = Bench()
    bench.enrolled(A, C)
    records = [replace(HELD, repository=RepoId(f"a/{n}")) for n in range(RESTORES_MAX + 1)]
    bench.page(A, *records, table=((C, 2), (B, 2)))
    effects = bench.page(C, *records, incarnation=2)
    assert len(only(Restore, effects)) == RESTORES_MAX
    for record in records[:-1]:
        assert only(Clear, bench.feed(Restored(record.repository))) == []
    assert only(Clear, bench.feed(Restored(records[-1].repository))) == [Clear(2, ((C, 2),))]
    bench.feed(Cleared("disk full"))
    assert bench.step is Step.WAITING
    bench = Bench()
    bench.enrolled(A, C)
    bench.page(A)
    assert only(Clear, bench.page(C)) == [Clear(2, ())]
    bench.feed(Cleared())
    assert bench.step is Step.DONE
    assert bench.feed(Tick(), 100.0) == []


def test_a_repository_that_cannot_be_learned_is_tried_again_and_then_everything() -> None:
    bench = Bench()
    bench.enrolled(A, C)
    bench.page(A, HELD)
    assert len(only(Restore, bench.page(C, HELD))) == 1
    for _ in range(TRIES_MAX - 1):
        assert len(only(Restore, bench.feed(Restored(REPOSITORY, "nobody has it")))) == 1
    assert only(Restore, bench.feed(Restored(REPOSITORY, "nobody has it"))) == []
    assert bench.step is Step.WAITING


def test_an_operators_choice_needs_no_majority_and_asks_the_others_all_the_same() -> None:
    bench = Bench(sources=frozenset({A}))
    bench.feed(Begin())
    bench.told(A)
    assert bench.step is Step.ASKING  # node-3 may answer yet: it should know the new number, too
    bench.feed(Tick(), ANSWER_S)
    assert bench.step is Step.ENROLLING
    bench.told(A, 2, granted=True)
    effects = bench.feed(Tick(), ANSWER_S)
    assert asked(effects) == [(A, AcceptorRecords(2, "life-2"))]
    assert len(only(Restore, bench.page(A, HELD))) == 1


def test_an_operators_nobody_starts_with_nothing() -> None:
    bench = Bench(sources=frozenset())
    bench.feed(Begin())
    bench.feed(Tick(), ANSWER_S)
    assert only(Clear, bench.feed(Tick(), ANSWER_S)) == [Clear(2, ())]


def test_a_journal_that_refuses_the_number_interrupts() -> None:
    machine = Rejoin(B, VOTERS)
    machine.handle(Begin(), 0.0)
    machine.handle(Answered(A, Enrolment(False, 1)), 0.0)
    machine.handle(Answered(C, Enrolment(False, 1)), 0.0)
    machine.handle(Kept(2, "life", "disk full"), 0.0)
    assert machine.step is Step.WAITING


def test_it_asks_to_be_woken_while_it_waits_for_others_and_never_in_the_past() -> None:
    bench = Bench()
    (wish,) = only(Wake, bench.feed(Begin()))
    assert 0 < wish.at <= ANSWER_S
    assert all(effect.at >= bench.now for effect in only(Wake, bench.feed(Tick(), 2.9)))


@pytest.mark.parametrize("step", list(Step))
def test_every_step_has_a_row_and_only_the_last_is_an_end(step: Step) -> None:
    assert (TRANSITIONS[step] == {}) is (step is Step.DONE)
    reached = {after for row in TRANSITIONS.values() for after in row.values()} | {Step.WAITING}
    assert step in reached
    assert {trigger for row in TRANSITIONS.values() for trigger in row} == set(Trigger)
    assert ballot(1) > NO_BALLOT
