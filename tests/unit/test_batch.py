"""Group commit (C1): what waits is laid into one change; what cannot be in it is refused before any vote."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from node.protocol.batch import Pending, form
from node.protocol.change import REQUESTS_PER_CHANGE_MAX, Change, ChangeKind, RefUpdate, Request
from node.protocol.events import Submitted
from node.protocol.ids import NodeId, RefName, TxnId
from node.protocol.messages import INLINE_TOTAL_BYTES_MAX
from node.protocol.register import Register
from tests.scenarios.values import REPOSITORY, oid, update
from tests.unit.machine_values import REGISTER, VOTERS, submitted


def pending(txn: str, branch: str, old: str = "-", **more: bool) -> Pending:
    return Pending.of(submitted(txn, branch=branch, old=old, **more))


def push(txn: str, *updates: RefUpdate, atomic: bool = False) -> Pending:
    request = Request(TxnId(txn), "alice", NodeId("node-1"), 0, updates)
    return Pending.of(Submitted(ChangeKind.UPDATE, request, 9.0, atomic=atomic))


def whole(kind: ChangeKind, txn: str) -> Pending:
    name = str(REPOSITORY) if kind is ChangeKind.CREATE else ""
    return Pending.of(Submitted(kind, Request(TxnId(txn), "alice", NodeId("node-1"), 0), 9.0, name=name))


def test_requests_are_combined_in_order() -> None:
    batch = form(REGISTER, [pending("t1", "a"), pending("t2", "b")])
    assert batch.change is not None
    assert batch.change.txns == ("t1", "t2")
    assert REGISTER.refuses(batch.change) is None


def test_what_cannot_be_in_it_does_not_hurt_the_others() -> None:
    batch = form(
        REGISTER, [pending("t1", "a"), pending("t2", "a"), pending("t3", "a/b"), pending("t4", "b", "x"), pending("t5", "c")]
    )
    assert batch.change is not None
    assert batch.change.txns == ("t1", "t5")
    assert [one.txn for one, _ in batch.rejected] == ["t2", "t3", "t4"]


def test_a_push_that_is_not_atomic_loses_the_refs_that_do_not_fit() -> None:
    batch = form(REGISTER, [push("t1", update("a", "-", "x"), update("b", "z", "y"))])
    assert batch.change is not None
    assert [u.ref for u in batch.change.requests[0].updates] == ["refs/heads/a"]
    assert batch.taken[0].rejections[0][0] == "refs/heads/b"


def test_an_atomic_push_is_all_or_nothing() -> None:
    batch = form(REGISTER, [push("t1", update("a", "-", "x"), update("b", "z", "y"), atomic=True)])
    assert batch.change is None
    assert batch.rejected[0][1] == "reference does not exist"


def test_deletes_go_first_so_that_a_directory_may_become_a_file() -> None:
    here = REGISTER.applied(form(REGISTER, [push("t0", update("main", "-", "m"), update("a/b", "-", "x"))]).change or _never())
    batch = form(here, [push("t1", update("a", "-", "y"), update("a/b", "x", "-"))])
    assert batch.change is not None
    assert here.refuses(batch.change) is None


def test_one_ref_twice_in_one_push_is_refused() -> None:
    batch = form(REGISTER, [push("t1", update("a", "-", "x"), update("a", "x", "y"))])
    assert batch.taken[0].rejections == ((RefName("refs/heads/a"), "multiple updates for one ref"),)


def test_creations_and_deletions_travel_alone() -> None:
    absent = Register(REPOSITORY, VOTERS)
    batch = form(absent, [whole(ChangeKind.CREATE, "t1"), pending("t2", "a")])
    assert batch.change is not None
    assert (batch.change.kind, batch.change.txns, batch.change.voters) == (ChangeKind.CREATE, ("t1",), VOTERS)
    assert [one.txn for one in batch.left] == ["t2"]
    batch = form(REGISTER, [pending("t1", "a"), whole(ChangeKind.DELETE, "t2"), pending("t3", "b")])
    assert batch.change is not None
    assert batch.change.txns == ("t1",)
    assert [one.txn for one in batch.left] == ["t2", "t3"]


def test_what_does_not_exist_is_not_written_or_deleted_and_what_exists_is_not_created() -> None:
    absent = Register(REPOSITORY, VOTERS)
    assert [reason for _, reason in form(absent, [pending("t1", "a"), whole(ChangeKind.DELETE, "t2")]).rejected] == [
        "repository does not exist"
    ] * 2
    assert form(REGISTER, [whole(ChangeKind.CREATE, "t1")]).rejected[0][1] == "alice/project exists"


def test_after_a_no_requests_are_formed_singly() -> None:
    again = [one.again(alone=True) for one in (pending("t1", "a"), pending("t2", "b"))]
    batch = form(REGISTER, again)
    assert batch.change is not None
    assert batch.change.txns == ("t1.2",)
    assert [one.txn for one in batch.left] == ["t2.2"]


def test_a_change_is_bounded() -> None:
    batch = form(REGISTER, [pending(f"t{n}", f"b{n}") for n in range(REQUESTS_PER_CHANGE_MAX + 3)])
    assert (len(batch.taken), len(batch.left)) == (REQUESTS_PER_CHANGE_MAX, 3)
    heavy = [pending(f"t{n}", f"b{n}") for n in range(3)]
    for one in heavy:
        one.submitted = replace(one.submitted, inline_bytes=INLINE_TOTAL_BYTES_MAX // 2)
    assert (len(form(REGISTER, heavy).taken), len(form(REGISTER, heavy).left)) == (2, 1)
    assert len(form(REGISTER, [pending(f"t{n}", "x" * 900 + str(n)) for n in range(9)]).taken) == 9


def test_a_first_push_of_another_branch_moves_head() -> None:
    batch = form(REGISTER, [pending("t1", "master")])
    assert batch.change is not None
    assert REGISTER.applied(batch.change).head == "refs/heads/master"


def test_each_try_has_its_own_id() -> None:
    first = pending("t1", "a")
    assert [first.again().txn, first.again().again().txn] == ["t1.2", "t1.3"]


updates = st.builds(update, st.sampled_from(["main", "a", "a/b", "b", "c"]), st.sampled_from("-xy"), st.sampled_from("-xyz"))
pushes = st.lists(st.tuples(st.lists(updates, min_size=1, max_size=3), st.booleans()), min_size=1, max_size=8)


@given(pushes)
def test_forming_one_batch_equals_applying_one_by_one(many: list[tuple[list[RefUpdate], bool]]) -> None:
    waiting = [push(f"t{n}", *each, atomic=atomic) for n, (each, atomic) in enumerate(many)]
    together = form(REGISTER, waiting)
    assert len(together.taken) + len(together.rejected) == len(waiting)
    one_by_one, taken = REGISTER, []
    for n, (each, atomic) in enumerate(many):
        alone = form(one_by_one, [push(f"t{n}", *each, atomic=atomic)])
        if alone.change is not None:
            assert one_by_one.refuses(alone.change) is None
            one_by_one = one_by_one.applied(alone.change)
            taken.append(f"t{n}")
    assert [one.txn for one in together.taken] == taken
    if together.change is not None:
        assert REGISTER.refuses(together.change) is None
        after = REGISTER.applied(together.change)
        assert (after.refs, after.head) == (one_by_one.refs, one_by_one.head)


def _never() -> Change:
    raise AssertionError(oid("-"))
