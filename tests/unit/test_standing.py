"""What a journal is worth (R4): which life of a node is older than another one, and when a cluster is founded."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import permutations

import pytest

from node.protocol.ids import NodeId
from node.protocol.standing import Found, Life, Lost, Standing, State, Undecided, founding, together, weighed

A, B, C = NodeId("node-1"), NodeId("node-2"), NodeId("node-3")
LIFE = Life(2, "journal", 5, "mine", 100, began=97)
NEW = Standing(State.NEW)
REJOINING = Standing(State.REJOINING)


def member(*founders: str) -> Standing:
    return Standing(State.MEMBER, founders)


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (LIFE, ""),
        (replace(LIFE, boot=4, nonce="before", writes=90), ""),
        (replace(LIFE, incarnation=1, writes=9999, boot=99), ""),
        (replace(LIFE, incarnation=3), "incarnation 3 of it is known"),
        (replace(LIFE, journal="another"), "journal another"),
        (replace(LIFE, writes=101), "101 writes"),
        (replace(LIFE, boot=6, nonce="later"), "start 6"),
        (replace(LIFE, nonce="theirs"), "another process"),
        (replace(LIFE, boot=4, nonce="before", writes=98), "98 writes of its journal were seen before its start 5"),
        (replace(LIFE, writes=98, lost=True), "98 writes"),
        (replace(LIFE, incarnation=1, writes=9999, lost=True), ""),
    ],
)
def test_what_was_seen_of_a_node_shows_whether_it_is_older(seen: Life, reason: str) -> None:
    assert LIFE.behind(seen).startswith(reason) or reason in LIFE.behind(seen)
    assert bool(LIFE.behind(seen)) == bool(reason)


def test_an_answer_of_the_same_start_may_be_slow_one_of_an_earlier_start_is_not_taken() -> None:
    assert LIFE.answers_behind(replace(LIFE, writes=500)) == ""
    assert replace(LIFE, boot=4, nonce="before").answers_behind(LIFE)
    assert LIFE.answers_behind(replace(LIFE, nonce="theirs"))


EARLIER = replace(LIFE, boot=4, nonce="before", writes=98, began=90)


@pytest.mark.parametrize(("first", "second"), [(LIFE, EARLIER), (EARLIER, LIFE)])
def test_a_start_that_found_less_than_an_earlier_one_had_told_of_is_never_believed_again(first: Life, second: Life) -> None:
    """Whichever of the two is heard first (seed 116866): a late message of the earlier start counts no more, and proves it."""
    counts, known = weighed(None, first)
    assert counts
    counts, known = weighed(known, second)
    assert not counts
    assert LIFE.behind(known), "the node is told, whatever it has written since"
    for heard in (
        LIFE,
        EARLIER,
        replace(LIFE, writes=10_000),
        replace(LIFE, boot=6, nonce="next", began=10_000, writes=10_001),
    ):
        counts, known = weighed(known, heard)
        assert not counts, heard
        assert heard.behind(known), heard
    rejoined = replace(LIFE, incarnation=3, writes=3)
    assert weighed(known, rejoined) == (True, rejoined)
    assert rejoined.behind(known) == ""


def test_an_honest_start_holds_all_that_was_told_before() -> None:
    for earlier in (replace(EARLIER, writes=97), replace(EARLIER, incarnation=1, writes=500), replace(EARLIER, writes=0)):
        assert weighed(earlier, LIFE) == (True, LIFE)
        assert weighed(LIFE, earlier) == (False, LIFE)


def test_what_several_have_seen_is_put_together_whatever_its_order() -> None:
    between = replace(LIFE, boot=6, nonce="later", writes=140, began=120)
    rejoined = replace(LIFE, incarnation=3, boot=1, writes=0, began=0)
    honest = replace(EARLIER, writes=97)
    for lives, known in (
        ((honest, LIFE), LIFE),
        ((EARLIER, LIFE), replace(LIFE, writes=100, lost=True)),
        ((EARLIER, LIFE, between), replace(LIFE, writes=100, lost=True)),  # the last start alone contradicts neither
        ((LIFE, replace(LIFE, nonce="theirs", writes=90)), replace(LIFE, nonce="theirs", writes=100, lost=True)),
        ((EARLIER, LIFE, rejoined), rejoined),
        ((LIFE, replace(LIFE, incarnation=1, lost=True)), LIFE),
    ):
        for order in permutations(lives):
            assert together(*order) == known, order
        assert together(known, *lives) == known, lives


def test_the_later_life_is_remembered() -> None:
    assert LIFE.later(None) == LIFE
    assert LIFE.later(replace(LIFE, writes=99)) == LIFE
    assert LIFE.later(replace(LIFE, incarnation=3, writes=0)).incarnation == 3


@pytest.mark.parametrize(
    ("heard", "verdict"),
    [
        ({}, Undecided((B, C))),
        ({B: ("b", NEW)}, Undecided((C,))),
        ({B: ("b", NEW), C: ("c", NEW)}, Found(("a", "b", "c"))),
        ({B: ("b", member("a", "b", "c"))}, Found(("a", "b", "c"))),
        ({B: ("b", member("a", "b", "c")), C: ("other", REJOINING)}, Found(("a", "b", "c"))),
        ({B: ("b", member("gone", "b", "c")), C: ("c", NEW)}, Lost("")),
        ({B: ("b", member("a", "b", "c")), C: ("c", member("gone", "b", "c"))}, Lost("")),
        ({B: ("b", NEW), C: ("c", REJOINING)}, Undecided((C,))),
    ],
)
def test_a_cluster_is_founded_by_all_or_not_at_all(
    heard: Mapping[NodeId, tuple[str, Standing]], verdict: Found | Lost | Undecided
) -> None:
    decided = founding("a", (B, C), heard)
    assert type(decided) is type(verdict)
    assert isinstance(decided, Lost) or decided == verdict


def test_a_cluster_of_one_is_founded_at_once() -> None:
    assert founding("a", (), {}) == Found(("a",))
