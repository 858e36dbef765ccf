"""The fast check finds each thing that may not be, and says which operation it is about."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.nemesis.bad_histories import parse
from tests.nemesis.chains import Change, Fault, Request, check_chains, replay
from tests.nemesis.history import ZERO, Operation, Update


def created(transaction: str = "t1") -> Change:
    return Change(1, "d1", "d0", "create", (Request(transaction, ()),))


def update(version: int, *changed: tuple[str, str, str], transaction: str = "") -> Change:
    """On the digest of the version before."""
    updates = tuple(Update(ref, old, new) for ref, old, new in changed)
    return Change(version, f"d{version}", f"d{version - 1}", "update", (Request(transaction or f"x{version}", updates),))


MAIN_A = update(2, ("main", ZERO, "a"))
MAIN_B = update(3, ("main", "a", "b"))
LIFE = """
A 0–1 create =committed v1
A 2–3 push main:none→a =committed v2
B 4–5 push main:a→b =committed v3
C 6–7 read =main:b v3
C 6–7 local =main:a v2
"""


def faults(lines: str, *chains: Sequence[Change]) -> list[Fault]:
    histories = dict(enumerate(chains, start=1))
    return [each.fault for each in check_chains(parse(lines), histories)]


CHAIN = [created(), MAIN_A, MAIN_B]


def test_a_good_run_has_no_violation() -> None:
    assert faults(LIFE, CHAIN, CHAIN, CHAIN) == []


def test_what_was_told_unknown_aborted_or_rejected_may_be_absent_and_unknown_may_be_there() -> None:
    told = LIFE + "D 2–3 push main:none→c =unknown\nD 4–5 push main:a→e =aborted\nD 4–5 push main:q→f =rejected"
    assert faults(told, CHAIN) == []
    assert faults(LIFE.replace("push main:a→b =committed v3", "push main:a→b =unknown"), CHAIN) == []


@pytest.mark.parametrize(
    ("lines", "chain", "expected"),
    [
        (LIFE, [created(), MAIN_A], [Fault.LOST, Fault.LOST]),
        (
            LIFE.replace("ok", ""),
            [created(), MAIN_A, update(3, ("main", "a", "c"))],
            [Fault.GHOST, Fault.LOST, Fault.WRONG_VALUE],
        ),
        (LIFE.replace("push main:a→b =committed v3", "push main:a→b =aborted"), CHAIN, [Fault.GHOST]),
        (LIFE.replace("push main:a→b =committed v3", "push main:a→b =rejected"), CHAIN, [Fault.GHOST]),
        (LIFE.replace("b =committed v3", "b =committed v4"), CHAIN, [Fault.LOST, Fault.STALE]),
        (LIFE.replace("C 6–7 read =main:b v3", "C 6–7 read =main:a v2"), CHAIN, [Fault.STALE]),
        (LIFE.replace("local =main:a v2", "local =main:c v2"), CHAIN, [Fault.WRONG_VALUE]),
        (LIFE + "D 1.5–1.6 local =main:b v3", CHAIN, [Fault.FUTURE]),
        (LIFE, [created(), MAIN_A, update(3, ("main", "c", "b"))], [Fault.BROKEN, Fault.GHOST, Fault.LOST]),
        (
            LIFE,
            [created(), MAIN_A, MAIN_B, update(4, ("main", "b", "a")), update(5, ("main", "a", "b"))],
            [Fault.GHOST, Fault.GHOST],
        ),
    ],
    ids=[
        "the last push is gone, and was seen",
        "another value under the version",
        "aborted and there",
        "rejected and there",
        "not at the version that was told",
        "a strong read of the past",
        "a value that never was",
        "seen before it was sent",
        "a change on what was not there",
        "the same push twice",
    ],
)
def test_each_violation_is_found(lines: str, chain: list[Change], expected: list[Fault]) -> None:
    assert faults(lines, chain) == expected


def test_nodes_that_differ_are_divergent() -> None:
    other = Change(3, "e3", "d2", "update", MAIN_B.requests)
    assert Fault.DIVERGENT in faults(LIFE, CHAIN, [created(), MAIN_A, other])
    assert faults(LIFE, CHAIN, CHAIN[:2]) == [Fault.DIVERGENT]


def test_a_gap_in_versions_or_digests_is_a_broken_chain() -> None:
    gap = Change(4, "d4", "d3", "update", MAIN_B.requests)
    loose = Change(3, "d3", "other", "update", MAIN_B.requests)
    assert [each.fault for each in replay([created(), MAIN_A, gap])[1]] == [Fault.BROKEN, Fault.BROKEN]
    assert [each.fault for each in replay([created(), MAIN_A, loose])[1]] == [Fault.BROKEN]


def test_a_write_after_a_deletion_and_creation_is_replayed_from_nothing() -> None:
    deleted = Change(3, "d3", "d2", "delete", (Request("x3", ()),))
    again = Change(4, "d4", "d3", "create", (Request("x4", ()),))
    states, broken = replay([created(), MAIN_A, deleted, again])
    assert (states, broken) == ([None, (), (("main", "a"),), None, ()], [])
    assert replay([created(), MAIN_A, deleted, MAIN_B])[1]


def test_a_transaction_is_found_by_its_name_and_a_retry_of_it_too() -> None:
    (first, push, *_) = parse(LIFE)
    told = [named(first, "t1"), named(push, "t2")]
    history = [created("t1"), update(2, ("main", ZERO, "a"), transaction="t2.1")]
    assert check_chains(told, {1: history}) == []
    other = [created("t1"), update(2, ("main", ZERO, "a"), transaction="t9")]
    assert [each.fault for each in check_chains(told, {1: other})] == [Fault.GHOST, Fault.LOST]


def named(operation: Operation, transaction: str) -> Operation:
    return replace(operation, transaction=transaction)


def test_an_unknown_push_and_an_acknowledged_one_of_the_same_words_are_told_apart() -> None:
    """Two clients delete the same ref: one of them did it."""
    lines = """
    A 0–1 create =committed v1
    A 2–3 push main:none→a =committed v2
    B 4–5 push main:a→none =unknown
    C 4–5 push main:a→none =committed v3
    """
    assert faults(lines, [created(), MAIN_A, update(3, ("main", "a", ZERO))]) == []
