"""What C3 reads out of a majority's promises."""

from dataclasses import replace

from node.protocol.acceptor import Accepted
from node.protocol.ids import Ballot, Digest, NodeId, Position, digest_of
from node.protocol.messages import InlinePack, Promise
from node.protocol.promises import Promises
from tests.scenarios.values import REPOSITORY
from tests.unit.machine_values import VOTERS, A, B, C, change

BALLOT = Ballot(9, A, 0)


def position(version: int) -> Position:
    return Position(version, digest_of(f"version {version}"))


HERE = position(4)


def promise(committed: Position = HERE, accepted: Accepted | None = None, *, staged: bool = False) -> Promise:
    return Promise(REPOSITORY, VOTERS.digest, BALLOT, 1, accepted, committed, staged=staged)


def gathered(**by: Promise) -> Promises:
    promises = Promises()
    for name, given in by.items():
        promises.add({"a": A, "b": B, "c": C}[name], given)
    return promises


def test_the_highest_ballot_decides_and_not_what_more_voters_hold() -> None:
    often, once = change("often", HERE), change("once", HERE)
    low, high = Accepted(Ballot(2, A, 1), HERE, often), Accepted(Ballot(3, B, 1), HERE, once)
    promises = gathered(a=promise(accepted=low), b=promise(accepted=high), c=promise(accepted=low))
    assert promises.top() == high
    assert set(promises.changes_on(HERE)) == {often, once}


def test_no_change_at_the_highest_ballot_hides_no_change_below_it() -> None:
    """It must not be finished, and it may survive elsewhere: C3 proposes none then."""
    lower = change("lower", HERE)
    promises = gathered(
        a=promise(accepted=Accepted(Ballot(2, A, 1), HERE, lower)), b=promise(accepted=Accepted(Ballot(3, B, 1), HERE, None))
    )
    top = promises.top()
    assert top is not None
    assert top.change is None
    assert promises.changes_on(HERE) == (lower,)


def test_a_change_on_an_older_version_is_not_on_this_one() -> None:
    old = change("old", position(3))
    promises = gathered(a=promise(accepted=Accepted(Ballot(2, A, 1), position(3), old)))
    assert promises.changes_on(HERE) == ()
    assert promises.changes_on(position(3)) == (old,)


def test_who_is_ahead_is_known_and_the_same_version_with_another_digest_is_a_clash() -> None:
    ahead = position(6)
    other = replace(HERE, digest=digest_of("another history"))
    promises = gathered(a=promise(), b=promise(ahead), c=promise(ahead))
    assert promises.highest() == ahead
    assert promises.at_least(6) == (B, C)
    assert promises.clash(HERE) is None
    assert gathered(a=promise(), b=promise(other)).clash(HERE) == other


def test_objects_are_had_from_those_that_staged_the_change() -> None:
    staged = change("x", HERE)
    accepted = Accepted(Ballot(2, A, 1), HERE, staged)
    small = InlinePack(Digest("1" * 64), b"pack", b"index")
    riding = replace(promise(accepted=accepted), packs=(small,))
    promises = gathered(a=promise(accepted=accepted, staged=True), b=riding, c=riding)
    assert promises.objects_of(staged.position.digest) == ((A,), (small,))
    assert promises.objects_of(digest_of("unheard of")) == ((), ())


def test_nobody_has_promised_yet() -> None:
    promises = Promises()
    assert len(promises) == 0
    assert NodeId("node-1") not in promises
    assert promises.top() is None
    assert repr(promises) == "<Promises of nobody>"
