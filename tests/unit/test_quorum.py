"""replication.md, Words: majority, blocking set, quorum; and the three-valued tally against a dumb one."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.protocol.ids import NodeId
from node.protocol.quorum import QuorumRefused, Verdict, VoterSet, blocking, majority, quorum, tally

NODES = [NodeId(f"node-{n}") for n in range(1, 8)]


@pytest.mark.parametrize(
    ("voters", "most", "block"), [(1, 1, 1), (2, 2, 1), (3, 2, 2), (4, 3, 2), (5, 3, 3), (6, 4, 3), (7, 4, 4)]
)
def test_majority_and_blocking_set(voters: int, most: int, block: int) -> None:
    assert (majority(voters), blocking(voters)) == (most, block)


@pytest.mark.parametrize("voters", range(1, 8))
def test_any_two_majorities_meet(voters: int) -> None:
    groups = list(combinations(range(voters), majority(voters)))
    assert all(set(one) & set(other) for one in groups for other in groups)


@pytest.mark.parametrize("voters", range(1, 8))
def test_a_blocking_set_meets_every_majority_and_no_smaller_set_does(voters: int) -> None:
    groups = [set(group) for group in combinations(range(voters), majority(voters))]
    assert all(set(block) & group for block in combinations(range(voters), blocking(voters)) for group in groups)
    smaller = combinations(range(voters), blocking(voters) - 1)
    assert any(not set(block) & group for block in smaller for group in groups)


@pytest.mark.parametrize("voters", [4, 6])
def test_the_sketch_let_two_halves_commit(voters: int) -> None:
    sketch = -(-voters // 2) - 1 + 1
    assert 2 * sketch <= voters
    assert 2 * majority(voters) > voters


@pytest.mark.parametrize(("rule", "needed"), [("majority", 3), ("all", 5), ("3", 3), ("4", 4), ("5", 5)])
def test_quorum_can_be_raised(rule: str, needed: int) -> None:
    assert quorum(5, rule) == needed


@pytest.mark.parametrize("rule", ["2", "0", "6", "-3", "most", ""])
def test_quorum_below_a_majority_or_nonsense_is_refused(rule: str) -> None:
    with pytest.raises(QuorumRefused):
        quorum(5, rule)


def test_voter_set_is_sorted_without_duplicates_and_not_empty() -> None:
    assert VoterSet.of([NODES[1], NODES[0], NODES[1]]).nodes == (NODES[0], NODES[1])
    for bad in ((), (NODES[1], NODES[0]), (NODES[0], NODES[0])):
        with pytest.raises(ValueError):
            VoterSet(tuple(bad))


def test_digest_names_the_members() -> None:
    assert VoterSet.of(NODES[:3]).digest != VoterSet.of(NODES[:4]).digest


ballots = st.tuples(
    st.integers(1, 7),
    st.integers(1, 7),
    st.sets(st.sampled_from(NODES)),
    st.sets(st.sampled_from(NODES)),
    st.sets(st.sampled_from(NODES)),
)


@given(ballots)
def test_tally_agrees_with_a_dumb_one(case: tuple[int, int, set[NodeId], set[NodeId], set[NodeId]]) -> None:
    size, needed, yes, no, unreachable = case
    voters = VoterSet.of(NODES[:size])
    ayes = open_ = 0
    for node in voters.nodes:
        if node in yes:
            ayes += 1
        elif node not in no and node not in unreachable:
            open_ += 1
    expected = Verdict.WON if ayes >= needed else Verdict.PENDING if ayes + open_ >= needed else Verdict.LOST
    assert tally(voters, needed, yes, no, unreachable) is expected


@given(ballots, st.sets(st.sampled_from(NODES)))
def test_a_verdict_once_taken_is_not_revisited_by_more_yes_votes(
    case: tuple[int, int, set[NodeId], set[NodeId], set[NodeId]], more: set[NodeId]
) -> None:
    size, needed, yes, no, _ = case
    voters = VoterSet.of(NODES[:size])
    before = tally(voters, needed, yes, no)
    after = tally(voters, needed, yes | (more - no), no)
    assert before is Verdict.PENDING or after is before


def test_a_stranger_does_not_count() -> None:
    voters = VoterSet.of(NODES[:3])
    assert tally(voters, 2, [NODES[0], NODES[5], NODES[6]]) is Verdict.PENDING
