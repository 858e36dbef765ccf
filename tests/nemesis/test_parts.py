"""Small parts of the nemesis that a run relies on: packs that git takes, a plan that a seed fixes, answers read rightly."""

import asyncio
import json
from pathlib import Path
from random import Random

import pytest

from tests.cluster.harness import git
from tests.nemesis.clients import Client, Recorder, _of_rest, _refused, told_committed, told_refused
from tests.nemesis.commits import Commits
from tests.nemesis.faults import KINDS
from tests.nemesis.field import Field
from tests.nemesis.history import ZERO, History, Kind, Operation, Outcome, Update, read
from tests.nemesis.plan import Tally, chosen, deck
from tests.nemesis.run import _is_ours


def test_git_takes_the_packs(tmp_path: Path) -> None:
    git("init", "--quiet", "--bare", ".", cwd=tmp_path)
    commits = Commits("somebody", Random(1))
    (root,) = commits.on([ZERO])
    first, second = commits.on([root.oid, root.oid], size_bytes=100_000)
    for pack in (root.pack, second.pack):
        git("index-pack", "--stdin", "--strict", cwd=tmp_path, stdin=pack)
    for oid in (first.oid, second.oid):
        assert git("rev-list", "--objects", oid, cwd=tmp_path).out.count("\n") == 6
    assert len({root.oid, first.oid, second.oid}) == 3


@pytest.mark.parametrize(
    ("line", "ours"),
    [
        ('{"event": "Task exception was never retrieved", "level": "error", "exception": "…", "logger": "asyncio"}', True),
        (
            '{"event": "Exception in callback _Async…", "exception": "… in _on_connection_workflow_done …", '
            '"level": "error", "logger": "asyncio"}',
            False,
        ),
        ('{"event": "handler of claim failed", "level": "error", "logger": "broker.amqp"}', True),
        ('{"event": "scrub failed", "level": "error"}', True),
        ('{"event": "alarm", "reason": "damaged: refs/heads/main", "level": "error"}', False),
        ('{"event": "journal refused a write", "error": "disk full", "level": "error"}', False),
    ],
)
def test_what_nodes_log_of_their_own_faults_fails_a_run(line: str, ours: bool) -> None:
    """What an exception that nobody caught says comes from asyncio, and passed for nothing."""
    assert _is_ours(line) is ours


def test_a_seed_is_a_plan() -> None:
    def first(seed: int) -> list[str]:
        drawn = deck(Random(seed), KINDS)
        return [next(drawn).name for _ in range(sum(kind.times for kind in KINDS))]

    assert first(5) == first(5) != first(6)
    assert set(first(5)) == {kind.name for kind in KINDS}, "none is forgotten"


def test_kinds_that_are_not_possible_are_left_out_and_said(tmp_path: Path) -> None:
    kinds, said = chosen(["all"], Field(tmp_path, disks=False, clocks=False, rejoining=False, repair=False))
    assert {kind.needs for kind in kinds} == {""}
    assert {each.partition(":")[0] for each in said} == {kind.name for kind in KINDS if kind.needs}
    with pytest.raises(ValueError, match="no such fault: earthquake"):
        chosen(["earthquake"], Field(tmp_path))


def test_a_kind_that_never_struck_is_named() -> None:
    tally = Tally()
    tally.fired["kill"] = 1
    assert "kill" not in tally.silent(KINDS)
    assert "pause" in tally.silent(KINDS)


@pytest.mark.parametrize(
    ("reason", "outcome", "transaction"),
    [
        ("outcome unknown, transaction 20261126-ab.1; it is being settled, see http://x", Outcome.UNKNOWN, "20261126-ab.1"),
        ("quorum not reached (1/2): node-2 no answer", Outcome.ABORTED, None),
        ("quorum not reachable (1/2): node-2 unreachable; nothing was sent", Outcome.ABORTED, None),
        ("fetch first", Outcome.REJECTED, None),
    ],
)
def test_a_refusal_is_read_for_what_it_says(reason: str, outcome: Outcome, transaction: str | None) -> None:
    told = told_refused(reason)
    assert (told.outcome, told.transaction) == (outcome, transaction)


def test_an_acknowledgement_names_version_and_transaction() -> None:
    told = told_committed("remote: gitquorum: version 42 committed on 2/3 (quorum 2) tx 20261126-ab\n")
    assert (told.outcome, told.version, told.transaction) == (Outcome.COMMITTED, 42, "20261126-ab")


@pytest.mark.parametrize(
    ("status", "document", "outcome"),
    [
        (503, {"type": "/problems/quorum-not-reached", "transaction_id": "t"}, Outcome.ABORTED),
        (503, {"type": "/problems/busy"}, Outcome.REJECTED),
        (503, {"type": "/problems/storage-failed"}, Outcome.UNKNOWN),
        (500, {"type": "/problems/internal-error"}, Outcome.UNKNOWN),
        (409, {"type": "/problems/repository-exists"}, Outcome.REJECTED),
    ],
)
def test_a_problem_is_read_for_what_it_says(status: int, document: dict[str, str], outcome: Outcome) -> None:
    assert _refused(status, json.dumps(document).encode()).outcome is outcome


def test_a_202_is_unknown() -> None:
    told = _of_rest(202, {}, b'{"transaction_id": "t"}')
    assert (told.outcome, told.transaction) == (Outcome.UNKNOWN, "t")


async def test_a_request_whose_connection_breaks_is_sent_once_and_unknown() -> None:
    """aiohttp would send a DELETE again: a node that died behind the first one made it pass for never sent (seed 32)."""
    taken: list[bytes] = []

    async def break_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        taken.append(await reader.readuntil(b"\r\n\r\n"))
        writer.close()

    server = await asyncio.start_server(break_off, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = Client("somebody", {1: f"http://127.0.0.1:{port}"}, Recorder(History()))
    assert (await client.delete(1, "o/r")).outcome is Outcome.UNKNOWN
    assert len(taken) == 1
    server.close()
    await server.wait_closed()
    assert (await client.delete(1, "o/r")).outcome is Outcome.UNSENT
    await client.close()


def test_a_history_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    history = History(tmp_path / "history.jsonl")
    updates = (Update("refs/heads/main", ZERO, "a" * 40),)
    history.add(Operation(1, "c", Kind.PUSH, "o/r", 2, 0.5, 1.5, Outcome.UNKNOWN, updates, None, None, "t", "why", "raw"))
    history.add(Operation(2, "c", Kind.READ, "o/r", 2, 2.5, 3.5, Outcome.COMMITTED, value=(("refs/heads/main", "a" * 40),)))
    history.add(Operation(3, "c", Kind.READ, "o/r", 2, 4.5, 5.5, Outcome.COMMITTED, value=None))
    assert list(read(tmp_path / "history.jsonl")) == history.operations
