"""What one value of the register refuses, in git's words, and what a change makes of it."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.protocol.change import Change, ChangeKind, RefUpdate, Request
from node.protocol.ids import NodeId, RefName, TxnId
from node.protocol.quorum import VoterSet
from node.protocol.register import DEFAULT_HEAD, Ref, Register, preferred
from tests.scenarios.values import REPOSITORY, oid, update
from tests.unit.machine_values import REGISTER, VOTERS, A, B, C, change

DELETION = Change(REPOSITORY, REGISTER.position, ChangeKind.DELETE, (Request(TxnId("d"), "alice", A, 0),))


def pushed(*updates: RefUpdate, register: Register = REGISTER, head: str | None = None) -> Change:
    request = Request(TxnId("t"), "alice", A, 0, updates, RefName(head) if head else None)
    return Change(REPOSITORY, register.position, ChangeKind.UPDATE, (request,))


FULL = REGISTER.applied(pushed(update("main", "-", "a"), update("topic/one", "-", "b")))


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (update("main", "-", "b"), "already exists"),
        (update("main", "x", "b"), "fetch first"),
        (update("new", "x", "b"), "does not exist"),
        (update("main", "a", "-"), "deletion of the current branch"),
        (update("main/below", "-", "b"), "'refs/heads/main' exists"),
        (update("topic", "-", "b"), "'refs/heads/topic/one' exists"),
    ],
)
def test_refusals_in_gits_words(wanted: RefUpdate, words: str) -> None:
    reason = FULL.refuses(pushed(wanted, register=FULL))
    assert reason is not None
    assert words in reason


@pytest.mark.parametrize(
    "wanted", [update("main", "a", "b"), update("new", "-", "b"), update("topic/one", "b", "-"), update("topic/two", "-", "c")]
)
def test_what_fits_is_taken(wanted: RefUpdate) -> None:
    assert FULL.refuses(pushed(wanted, register=FULL)) is None
    after = FULL.applied(pushed(wanted, register=FULL))
    assert (wanted.ref in after.refs) is not wanted.deletes


def test_updates_are_laid_one_on_another() -> None:
    moved = pushed(update("topic/one", "b", "-"), update("topic", "-", "c"), register=FULL)
    assert FULL.refuses(moved) is None
    assert RefName("refs/heads/topic") in FULL.applied(moved).refs


def test_a_change_stands_on_one_base_only() -> None:
    with pytest.raises(ValueError):
        FULL.applied(change("t1"))


def test_deletion_is_a_version_and_keeps_the_voter_set() -> None:
    gone = REGISTER.applied(DELETION)
    assert (gone.exists, gone.position.version, gone.floor, gone.voters) == (False, 2, 2, VOTERS)
    assert gone.refuses(pushed(update("main", "-", "a"), register=gone)) == "repository does not exist"
    again = Change(REPOSITORY, gone.position, ChangeKind.CREATE, (Request(TxnId("c"), "alice", A, 0),), str(REPOSITORY), VOTERS)
    assert gone.refuses(again) is None
    assert gone.refuses(replace(again, voters=VoterSet.of([A, B]))) == "the voter set of a repository never changes"
    assert gone.applied(again).refs == {}


def test_what_exists_is_not_created_again() -> None:
    again = Change(
        REPOSITORY, REGISTER.position, ChangeKind.CREATE, (Request(TxnId("c"), "alice", A, 0),), str(REPOSITORY), VOTERS
    )
    assert REGISTER.refuses(again) == "alice/project exists"


def test_head_moves_when_a_request_says_so() -> None:
    assert REGISTER.head == DEFAULT_HEAD
    after = REGISTER.applied(pushed(update("master", "-", "a"), head="refs/heads/master"))
    assert after.head == "refs/heads/master"
    assert after.refs[RefName("refs/heads/master")] == Ref(oid("a"))


@given(st.sets(st.sampled_from([A, B, C])))
def test_the_preferred_writer_is_the_same_for_everybody_and_alive(alive: set[NodeId]) -> None:
    assert preferred(REPOSITORY, VOTERS, alive) == preferred(REPOSITORY, VOTERS, sorted(alive))
    assert (preferred(REPOSITORY, VOTERS, alive) in alive) is bool(alive)
