"""The tree of hashes: kept incrementally it is the tree made anew; equal ones cost no question, a difference a few."""

from hypothesis import given, settings
from hypothesis import strategies as st

from node.protocol.hash_tree import DEPTH, PREFIXES_MAX, Difference, HashTree, Leaf
from node.protocol.ids import Digest, Position, RepoId

NAMES = st.integers(0, 60).map(lambda number: RepoId(f"o/r{number}"))
POSITIONS = st.builds(lambda version, digit: Position(version, Digest(f"{digit:064x}")), st.integers(1, 5), st.integers(0, 3))


def position(version: int, mark: int = 0) -> Position:
    return Position(version, Digest(f"{version * 100 + mark:064x}"))


def tree(count: int) -> HashTree:
    return HashTree(Leaf(RepoId(f"o/r{number}"), position(1)) for number in range(count))


def differences(mine: HashTree, theirs: HashTree) -> tuple[int, list[Difference]]:
    """(questions asked, what was found), as a node asks its peer; the roots were exchanged before."""
    if mine.hash() == theirs.hash():
        return 0, []
    asked, found, frontier = 0, list[Difference](), [""]
    while frontier:
        asked += 1
        page, frontier = frontier[:PREFIXES_MAX], frontier[PREFIXES_MAX:]
        for prefix in page:
            deeper, certain = mine.compare(theirs.branch(prefix))
            frontier += deeper
            found += certain
    return asked, found


@given(st.lists(st.tuples(NAMES, POSITIONS)))
def test_a_tree_kept_incrementally_is_the_tree_made_anew(steps: list[tuple[RepoId, Position]]) -> None:
    kept = HashTree()
    last: dict[RepoId, Position] = {}
    for name, at in steps:
        kept.put(name, at)
        last[name] = at
    anew = HashTree(Leaf(name, at) for name, at in sorted(last.items(), reverse=True))
    assert kept.hash() == anew.hash()
    assert len(kept) == len(last)
    assert differences(kept, anew) == (0, [])
    assert all(kept.get(name) == at for name, at in last.items())


@settings(deadline=None)
@given(st.dictionaries(NAMES, POSITIONS), st.dictionaries(NAMES, POSITIONS), st.integers(0, 400))
def test_a_comparison_finds_every_difference_and_nothing_else(
    one: dict[RepoId, Position], other: dict[RepoId, Position], shared: int
) -> None:
    mine, theirs = tree(0), tree(0)
    for number in range(shared):
        for each in (mine, theirs):
            each.put(RepoId(f"shared/r{number}"), position(1))
    for each, leaves in ((mine, one), (theirs, other)):
        for name, at in leaves.items():
            each.put(name, at)
    _, found = differences(mine, theirs)
    expected = {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}
    assert {difference.repository for difference in found} == expected
    assert len(found) == len(expected)
    assert all((d.mine, d.theirs) == (one.get(d.repository), other.get(d.repository)) for d in found)


def test_equal_trees_cost_no_question_whatever_their_size() -> None:
    for count in (0, 1, 100, 20_000):
        assert differences(tree(count), tree(count)) == (0, [])


def test_one_difference_costs_as_many_questions_as_the_tree_is_deep() -> None:
    costs = {}
    for count in (1, 10, 100, 1_000, 20_000):
        mine, theirs = tree(count), tree(count)
        theirs.put(RepoId("o/r0"), position(2))
        costs[count], found = differences(mine, theirs)
        assert found == [Difference(RepoId("o/r0"), position(1), position(2))]
    assert costs[1] == costs[10] == 1
    assert all(cost <= DEPTH + 1 for cost in costs.values()), costs
    assert costs[100] <= costs[1_000] <= costs[20_000]


def test_many_differences_are_asked_for_together() -> None:
    mine, theirs = tree(5_000), tree(5_000)
    for number in range(50):
        theirs.put(RepoId(f"o/r{number * 7}"), position(3))
    asked, found = differences(mine, theirs)
    assert len(found) == 50
    assert asked <= DEPTH + 1


def test_two_digests_at_one_version_are_a_difference_without_a_winner() -> None:
    mine, theirs = tree(3), tree(3)
    theirs.put(RepoId("o/r1"), position(1, mark=7))
    _, (found,) = differences(mine, theirs)
    assert found.mine is not None
    assert found.theirs is not None
    assert found.mine.version == found.theirs.version
