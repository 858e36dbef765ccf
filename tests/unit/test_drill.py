"""``gitquorum drill``: what it refuses, what it undoes, and how it reads what it sees. Fakes stand for nodes and faults."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from node.command import drill, drill_doubts, drill_round
from node.command.drill_doubts import Doubts
from node.command.drill_interrupts import Interrupts
from node.command.drill_load import Lane
from node.command.drill_push import ZERO, Client, Fate, Pushed, commit, meaning
from node.command.drill_round import Limits, Round, run_round
from node.command.drill_targets import Fault, Target, why_not
from node.command.output import CommandError, Exit
from node.command.state import Home
from tests.cluster.wire import pkt
from tests.unit.command_cluster import Recorder


def pushed(node: str = "n", fate: Fate = Fate.ACKNOWLEDGED, txn: str = "", new: str = "a" * 40, at: float = 1.0) -> Pushed:
    return Pushed(node, "refs/heads/x", ZERO, new, at, at + 0.1, fate, txn)


# ---------------------------------------------------------------- one push


def report(line: bytes, remark: bytes = b"") -> bytes:
    inner = pkt(b"unpack ok\n") + pkt(line) + b"0000"
    said = pkt(b"\x02" + remark) if remark else b""
    return said + pkt(b"\x01" + inner) + b"0000"


@pytest.mark.parametrize(
    ("body", "fate"),
    [
        (report(b"ok refs/heads/x\n", b"gitquorum: version 2 committed on 3/3 (quorum 2) tx tx-1-2"), Fate.ACKNOWLEDGED),
        (report(b"ng refs/heads/x outcome unknown, transaction tx-9; it is being settled\n"), Fate.UNKNOWN),
        (report(b"ng refs/heads/x quorum not reached (1/2)\n"), Fate.REFUSED),
        (report(b"ng refs/heads/x\n"), Fate.REFUSED),
        (report(b"ok refs/heads/x\n")[:-14], Fate.UNKNOWN),
        (b"", Fate.UNKNOWN),
        (b"zzzz", Fate.UNKNOWN),
    ],
)
def test_a_report_says_what_became_of_a_push_and_half_a_report_says_nothing(body: bytes, fate: Fate) -> None:
    assert meaning(body)[0] is fate


def test_a_commit_comes_with_a_pack_that_holds_it() -> None:
    first, _ = commit(ZERO, "one\n")
    second, pack = commit(first, "two\n")
    assert first != second
    assert pack[:12] == b"PACK\0\0\0\x02\0\0\0\x03"


@pytest.mark.parametrize("sent", [False, True])
def test_a_push_that_was_never_sent_is_no_doubt_and_one_that_was_is(sent: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def cut() -> None:
            connection, _ = listener.accept()
            connection.recv(65536)
            connection.close()

        if sent:
            threading.Thread(target=cut, daemon=True).start()
        else:
            listener.close()
        oid, pack = commit(ZERO, "x\n")
        done = Client("n", f"http://127.0.0.1:{port}", "a/b", 5).push("refs/heads/x", ZERO, oid, pack)
    assert done.fate is (Fate.UNKNOWN if sent else Fate.UNREACHABLE)


class Scripted:
    """A client whose pushes end as it is told."""

    def __init__(self, node: str, fates: list[Fate]) -> None:
        self.node = node
        self.fates = fates
        self.seen: list[tuple[str, str]] = []

    def push(self, ref: str, old: str, new: str, pack: bytes) -> Pushed:
        self.seen.append((ref, old))
        fate = self.fates.pop(0) if self.fates else Fate.ACKNOWLEDGED
        return Pushed(self.node, ref, old, new, time.monotonic(), time.monotonic(), fate)

    def close(self) -> None:
        return None


def test_a_lane_builds_on_what_was_acknowledged_and_leaves_a_branch_that_it_does_not_know() -> None:
    client = Scripted("n", [Fate.ACKNOWLEDGED, Fate.REFUSED, Fate.UNKNOWN, Fate.ACKNOWLEDGED])
    told: list[Pushed] = []
    lane = Lane([client], "b", told=told.append)  # type: ignore[list-item]
    made = [lane.once() for _ in range(5)]
    first = made[0].new
    assert client.seen[:3] == [("refs/heads/b", ZERO), ("refs/heads/b", first), ("refs/heads/b", first)]
    assert client.seen[3] == ("refs/heads/b-2", ZERO)
    assert client.seen[4] == ("refs/heads/b-2", made[3].new)
    assert told == made


# ---------------------------------------------------------------- a round


@dataclass
class Scene:
    """What the fake cluster answers."""

    log: list[str] = field(default_factory=list)
    fates: dict[str, Fate] = field(default_factory=dict)
    versions: dict[str, int | None] = field(default_factory=dict)
    equal: bool = True


class Told:
    """A fault that remembers."""

    def __init__(self, scene: Scene, kind: str = "kill", fails: bool = False) -> None:
        self.kind = kind
        self.target = Target("node-1", "http://1")
        self._scene = scene
        self._fails = fails

    def begin(self) -> None:
        self._scene.log.append("begin")
        self._scene.fates["node-1"] = Fate.UNREACHABLE
        if self._fails:
            raise CommandError("it does not work")

    def end(self) -> None:
        self._scene.log.append("end")
        self._scene.fates.pop("node-1", None)


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    scene = Scene()

    class FakeClient(Scripted):
        def push(self, ref: str, old: str, new: str, pack: bytes) -> Pushed:
            time.sleep(0.002)
            fate = scene.fates.get(self.node, Fate.ACKNOWLEDGED)
            return Pushed(self.node, ref, old, new, time.monotonic() - 0.002, time.monotonic(), fate, reason="as told")

    monkeypatch.setattr(drill_round, "_client", lambda target, repository: FakeClient(target.id, []))
    monkeypatch.setattr(drill_round, "version_of", lambda target, repository: scene.versions.get(target.id, 7))
    monkeypatch.setattr(drill_round, "all_equal", lambda targets, repository, timeout_s=0.0: scene.equal)
    monkeypatch.setattr(drill_round, "BEFORE_S", 0.02)
    monkeypatch.setattr(drill_round, "AFTER_S", 0.02)
    monkeypatch.setattr(drill_round, "FIRST_PUSH_TIMEOUT_S", 0.5)
    monkeypatch.setattr(drill_round, "CURRENT_TIMEOUT_S", 0.2)
    monkeypatch.setattr(drill_doubts.History, "read", lambda self: False)
    return scene


OTHERS = (Target("node-2", "http://2"), Target("node-3", "http://3"))


def go(scene: Scene, fault: Fault | None = None, **changes: Any) -> Round:
    limits = replace(Limits(), **changes)
    return run_round(fault or Told(scene), OTHERS, "a/b", "r", hold_s=0.1, limits=limits, say=lambda line: None)


def test_a_round_in_which_all_goes_well_passes(scene: Scene) -> None:
    seen = go(scene)
    assert scene.log == ["begin", "end"]
    assert seen.ok, seen.problems
    assert seen.attempts == seen.acknowledged > 5
    assert seen.availability == 1.0
    assert seen.through_it["unreachable"] >= 1
    assert seen.first_push_s is not None
    assert seen.first_push_s < 0.1
    shown = seen.as_dict()
    assert shown["ok"]
    assert shown["in_doubt"] == []


def test_pushes_that_fail_through_the_others_fail_the_round_and_are_explained(scene: Scene) -> None:
    class Worse(Told):
        def begin(self) -> None:
            super().begin()
            scene.fates["node-2"] = Fate.REFUSED

    seen = go(scene, Worse(scene))
    assert not seen.ok
    assert seen.refused > 0
    assert any("pushes through the other nodes were acknowledged" in problem for problem in seen.problems)
    assert seen.failures
    assert "as told" in seen.failures[0]


@pytest.mark.parametrize(
    ("change", "problem"),
    [({"versions": {"node-1": 3}}, "was not current"), ({"equal": False}, "the replicas are not equal")],
)
def test_a_node_that_does_not_come_back_or_differs_fails_the_round(scene: Scene, change: dict[str, Any], problem: str) -> None:
    for name, value in change.items():
        setattr(scene, name, value)
    seen = go(scene)
    assert any(problem in each for each in seen.problems), seen.problems


def test_doubts_that_nobody_settles_fail_the_round(scene: Scene) -> None:
    scene.equal = False

    class Doubtful(Told):
        def begin(self) -> None:
            super().begin()
            scene.fates["node-1"] = Fate.UNKNOWN

    seen = go(scene, Doubtful(scene))
    assert seen.doubts
    assert any("is not settled" in problem for problem in seen.problems)


@pytest.mark.parametrize("error", [CommandError("it does not work"), KeyboardInterrupt()])
def test_a_fault_ends_whatever_happens(scene: Scene, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    if isinstance(error, CommandError):
        with pytest.raises(CommandError, match="does not work"):
            go(scene, Told(scene, fails=True))
    else:
        fault = Told(scene)

        def interrupted(line: str) -> None:
            raise error

        with pytest.raises(KeyboardInterrupt):
            run_round(fault, OTHERS, "a/b", "r", hold_s=0.1, limits=Limits(), say=interrupted)
    assert scene.log == ["begin", "end"]


def test_no_fault_is_made_when_pushes_do_not_even_work_before_it(scene: Scene) -> None:
    scene.fates = {"node-2": Fate.REFUSED, "node-3": Fate.REFUSED}
    with pytest.raises(CommandError, match="before the fault"):
        go(scene)
    assert scene.log == []


# ---------------------------------------------------------------- doubts


class Ledger:
    """Histories and transactions as the watchers tell them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.version = 5
        self.oids: set[str] = set()
        self.outcomes: dict[str, str] = {}

        def read(history: drill_doubts.History) -> bool:
            history.version, history.oids = self.version, set(self.oids)
            return True

        monkeypatch.setattr(drill_doubts.History, "read", read)
        monkeypatch.setattr(Doubts, "_said", lambda doubts, txn: self.outcomes.get(txn, ""))


def test_a_push_is_settled_by_history_or_by_its_transaction(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(monkeypatch)
    doubts = Doubts(OTHERS, "a/b")
    doubts.add(pushed(fate=Fate.UNKNOWN, new="b" * 40))
    doubts.add(pushed(fate=Fate.UNKNOWN, txn="tx-1"))
    doubts.add(pushed(fate=Fate.UNKNOWN, txn="tx-2", new="c" * 40))
    doubts.look()
    assert [doubt.outcome for doubt in doubts.all()] == ["", "", ""]
    ledger.oids = {"b" * 40}
    ledger.outcomes = {"tx-1": "aborted"}
    doubts.look()
    assert [doubt.outcome for doubt in doubts.all()] == ["committed", "aborted", ""]


def test_what_a_dead_node_had_under_way_is_settled_when_it_can_stand_nowhere_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(monkeypatch)
    for forgotten, expected in (("n", "never committed"), ("", "")):
        ledger.version = 5
        doubts = Doubts(OTHERS, "a/b", forgotten)
        doubts.add(pushed(fate=Fate.UNKNOWN))
        doubts.look()
        ledger.version = 6
        doubts.look()
        assert doubts.all()[0].outcome == "", "it may be that very version's successor"
        ledger.version = 7
        doubts.look()
        assert doubts.all()[0].outcome == expected


def test_at_the_end_what_is_in_no_history_is_nowhere_only_if_all_replicas_are_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    Ledger(monkeypatch)
    for equal, expected in ((True, "never committed"), (False, "")):
        doubts = Doubts(OTHERS, "a/b")
        doubts.start()
        doubts.add(pushed(fate=Fate.UNKNOWN))
        assert doubts.close(equal)[0].outcome == expected


# ---------------------------------------------------------------- the command


@pytest.mark.parametrize(
    ("arguments", "word"),
    [((None, "kill,bomb", 5), "bomb"), ((0, None, 5), "--rounds"), ((101, None, 5), "--rounds"), ((1, None, 51), "--hold")],
)
def test_a_plan_that_makes_no_sense_is_refused(arguments: tuple[Any, ...], word: str) -> None:
    with pytest.raises(CommandError, match=word) as refused:
        drill.Plan.of(*arguments, Limits())
    assert refused.value.code == Exit.USAGE


def test_what_is_not_there_or_given_by_url_is_not_hit() -> None:
    target = Target("node-1", "http://127.0.0.1:1")
    assert "given by URL" in why_not("kill", target)
    assert "given by URL" in why_not("pause", target)
    assert "drill_token" in why_not("partition", target)
    assert "does not answer" in why_not("partition", replace(target, token="x" * 16))


def test_a_fault_that_is_not_possible_is_left_out_and_refused_when_it_was_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drill, "why_not", lambda kind, target: "no token" if kind == "partition" else "")
    assert drill._possible(OTHERS, ()) == (["kill", "pause"], {"partition": "no token"})
    with pytest.raises(CommandError, match="no partition: no token"):
        drill._possible(OTHERS, ("partition",))


HERE = [{"node_id": name, "state": "alive"} for name in ("node-2", "node-3")]
AWAY = [{"node_id": "node-2", "state": "suspected"}, HERE[1]]


@pytest.mark.parametrize(
    ("ready", "health", "word"),
    [
        (503, {"peers": HERE}, "node-1"),
        (200, {"peers": AWAY}, "misses node-2"),
        (200, {"peers": HERE, "problem": "alarm on x"}, "alarm"),
        (200, {"peers": HERE[:1]}, "has 1 peers"),
    ],
)
def test_a_cluster_that_is_not_well_is_left_alone(ready: int, health: dict[str, Any], word: str) -> None:
    with node(ready, health) as url:
        targets = [Target(f"node-{number}", url) for number in (1, 2, 3)]
        asked: list[str] = []

        def confirm(question: str) -> bool:
            asked.append(question)
            return True

        with pytest.raises(CommandError, match=word) as refused:
            drill.drill(Home(Path("/nonexistent/drill")), targets, drill.Plan(), Recorder(), confirm)
        assert refused.value.code == Exit.UNAVAILABLE
        assert not asked


def test_two_nodes_are_too_few_and_a_no_is_a_no(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CommandError, match="three nodes"):
        drill.drill(Home(Path("/nonexistent/drill")), OTHERS, drill.Plan(), Recorder(), lambda question: True)
    monkeypatch.setattr(drill, "_check_well", lambda targets, timeout_s: None)
    monkeypatch.setattr(drill, "why_not", lambda kind, target: "")
    with pytest.raises(CommandError, match="nothing was done"):
        drill.drill(Home(Path("/nonexistent/drill")), (*OTHERS, *OTHERS), drill.Plan(), Recorder(), lambda question: False)


def test_one_drill_at_a_time(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with drill._alone(home), pytest.raises(CommandError, match="another drill"), drill._alone(home):
        pass


def test_interrupts_wait_while_something_is_undone() -> None:
    steps = []

    def undo() -> None:
        with Interrupts() as interrupts:
            with interrupts.held():
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGINT)
                steps.append("undone")
            steps.append("not reached")

    def wait(number: int) -> None:
        with Interrupts():
            os.kill(os.getpid(), number)
            time.sleep(1)

    with pytest.raises(KeyboardInterrupt):
        undo()
    assert steps == ["undone"]
    before = signal.getsignal(signal.SIGHUP)
    for number in (signal.SIGTERM, signal.SIGHUP):
        with pytest.raises(KeyboardInterrupt):
            wait(number)
    assert signal.getsignal(signal.SIGHUP) is before


def test_ctrl_c_while_a_fault_is_undone_waits_until_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole drill, not only the context: a second Ctrl-C broke off the start of the node that had been killed."""
    undone: list[str] = []

    def interrupted(
        fault: Fault, *_: Any, undoing: Callable[[], AbstractContextManager[None]] = nullcontext, **__: Any
    ) -> Round:
        with undoing():
            os.kill(os.getpid(), signal.SIGINT)
            undone.append(fault.kind)
        raise AssertionError("the interrupt is raised at the end of the block")

    for name in ("_check_well", "_create", "_remove"):
        monkeypatch.setattr(drill, name, lambda *_: None)
    monkeypatch.setattr(drill, "why_not", lambda kind, target: "")
    monkeypatch.setattr(drill, "run_round", interrupted)
    targets = (*OTHERS, Target("node-1", "http://1"))
    with pytest.raises(CommandError, match="what was done is undone"):
        drill.drill(Home(Path("/nonexistent/drill")), targets, drill.Plan(), Recorder(), lambda question: True)
    assert undone == ["kill"]


def node(ready: int, health: dict[str, Any]) -> "Serving":
    return Serving(ready, health)


class Serving:
    """A context: the URL of something that answers /readyz and /health as it is told."""

    def __init__(self, ready: int, health: dict[str, Any]) -> None:
        import json

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = (ready, {}) if self.path.startswith("/readyz") else (200, health)
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                return None

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> str:
        self._thread.start()
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
