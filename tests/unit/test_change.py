"""A change names its base, and its digest chains it there."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.protocol.change import Change, ChangeKind, PackRef, RefUpdate, Request
from node.protocol.ids import ORIGIN, Digest, NodeId, Oid, Position, RefName, TxnId
from tests.scenarios.values import REPOSITORY, oid, pack, update
from tests.unit.machine_values import BASE, CREATION, VOTERS, A, change


def test_position_is_one_version_on() -> None:
    assert CREATION.position.version == 1
    assert change("t1").position.version == 2


def test_the_same_change_has_the_same_digest() -> None:
    assert change("t1").position == change("t1").position


@pytest.mark.parametrize(
    "other",
    [
        change("t2"),
        change("t1", branch="elsewhere"),
        change("t1", packed=True),
        replace(change("t1"), base=Position(1, Digest("1" * 64))),
        replace(change("t1"), requests=(replace(change("t1").requests[0], actor="bob"),)),
        replace(change("t1"), requests=(replace(change("t1").requests[0], key="k"),)),
        replace(change("t1"), requests=(replace(change("t1").requests[0], head=RefName("refs/heads/t1")),)),
        replace(change("t1"), requests=(replace(change("t1").requests[0], node=NodeId("node-2")),)),
        replace(change("t1"), requests=(*change("t1").requests, *change("t2").requests)),
        replace(change("t1"), kind=ChangeKind.DELETE),
    ],
)
def test_whatever_differs_changes_the_digest(other: Change) -> None:
    assert other.position.digest != change("t1").position.digest


@given(
    st.lists(st.text(alphabet="abc", min_size=1, max_size=3), min_size=1, max_size=8),
    st.integers(0, 7),
    st.text("xyz", min_size=1, max_size=3),
)
def test_digest_chain_tells_two_histories_apart_for_ever(txns: list[str], where: int, other: str) -> None:
    def chain(names: list[str]) -> list[Position]:
        positions, here = [], BASE
        for n, name in enumerate(names):
            here = change(f"{name}{n}", here).position
            positions.append(here)
        return positions

    where %= len(txns)
    one, two = chain(txns), chain([*txns[:where], other, *txns[where + 1 :]])
    assert one[:where] == two[:where]
    assert all(ours != theirs for ours, theirs in zip(one[where:], two[where:], strict=True))


def test_packs_are_named_once() -> None:
    requests = tuple(replace(change(txn).requests[0], packs=(pack("p"), pack(txn))) for txn in ("t1", "t2"))
    assert replace(change("t1"), requests=requests).packs == (pack("p"), pack("t1"), pack("t2"))


def test_a_creation_and_nothing_else_carries_name_and_voters() -> None:
    request = Request(TxnId("t"), "alice", A, 0)
    for kind, name, voters in (
        (ChangeKind.CREATE, "", VOTERS),
        (ChangeKind.CREATE, str(REPOSITORY), None),
        (ChangeKind.CREATE, "bob/project", VOTERS),
        (ChangeKind.UPDATE, str(REPOSITORY), None),
        (ChangeKind.DELETE, "", VOTERS),
    ):
        with pytest.raises(ValueError):
            Change(REPOSITORY, ORIGIN, kind, (request,), name, voters)


@pytest.mark.parametrize(
    ("ref", "old", "new"),
    [("refs/replace/x", oid("a"), oid("b")), ("refs/heads/x", "A" * 40, oid("b")), ("refs/heads/x", oid("a"), "b")],
)
def test_bad_updates_are_refused(ref: str, old: str, new: str) -> None:
    with pytest.raises(ValueError):
        RefUpdate(RefName(ref), Oid(old), Oid(new))


def test_bounds_hold() -> None:
    with pytest.raises(ValueError):
        replace(change("t1"), requests=())
    with pytest.raises(ValueError):
        replace(change("t1"), requests=change("t1").requests * 65)
    with pytest.raises(ValueError):
        Request(TxnId("t"), "x" * 257, A, 0)
    with pytest.raises(ValueError):
        replace(pack("p"), size_bytes=3)
    with pytest.raises(ValueError):
        PackRef("evil/../name", pack("p").sha256, 100, pack("p").sha256, 100)


def test_an_update_deletes_when_its_new_value_is_no_object() -> None:
    assert update("main", "a", "-").deletes
    assert not update("main", "a", "b").deletes
