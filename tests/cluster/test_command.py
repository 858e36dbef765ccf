"""The gitquorum command against a cluster it started itself: up, status, kill, start, down, doctor."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from node.command.output import Exit
from tests.cluster.harness import NODES, Cluster, Ran, Work, free_port_range, run, txns_of, wait

pytestmark = pytest.mark.cluster


STRANGER = """
import socket, sys, time
with socket.create_server(("127.0.0.1", int(sys.argv[1]))):
    print("listening", flush=True)
    time.sleep(60)
"""


def told(ran: Ran, code: Exit) -> str:
    """The one line that ends a command which did not do what was asked; no traceback, nothing on stdout."""
    assert ran.code == code, ran.said
    assert ran.out == ""
    assert "Traceback" not in ran.err
    line = ran.err.strip().splitlines()[-1]
    assert line.startswith("gitquorum: ")
    return line


def findings(ran: Ran) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for each in ran.json():
        found.setdefault(each["state"], []).append(each)
    return found


# ---------------------------------------------------------------- up and down


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster of this test's own, not started."""
    cluster = Cluster(tmp_path / "own", "direct")
    yield cluster
    if (cluster.home / "cluster.json").exists():
        cluster.close()
    assert not cluster.processes()


def test_up_down_up_and_purge(own: Cluster, work: Work) -> None:
    assert "start one with: gitquorum up" in told(_cli(own, "status"), Exit.NOT_FOUND)
    first = own.up()
    assert "3 nodes ready to write after" in first.err
    assert "What to do next" in first.out
    state = own.status()
    assert state["ready"]
    assert [node["ready"] for node in state["nodes"]] == [True] * 3
    pids = [own.pid(node) for node in NODES]

    again = own.cli("up", "--json")
    assert "already up: 3 nodes, no broker: direct transport" in again.err
    assert (again.json()["already_up"], again.json()["started"]) == (True, [])
    assert [own.pid(node) for node in NODES] == pids
    other = told(_cli(own, "up", "--nodes", "5"), Exit.USAGE)
    assert "has 3 nodes" in other
    assert "gitquorum down --purge" in other
    assert "to change its broker" in told(_cli(own, "up", "--broker", "local"), Exit.USAGE)

    name = own.create()
    oid = work.commit()
    work.git("push", "--quiet", own.url(1, name), "HEAD:main")
    stopped = own.cli("down", "--json").json()
    assert stopped["nodes"] == {f"node-{node}": "stopped" for node in NODES}
    assert stopped["purged"] is False
    assert not own.processes()
    down = own.status()
    assert down["ready"] is False
    assert [node["reason"] for node in down["nodes"]] == [
        f"not running; start it with: gitquorum start node-{n}" for n in NODES
    ]
    nobody = told(_cli(own, "repo", "list"), Exit.UNAVAILABLE)
    assert "no node answers" in nobody
    assert "start the cluster with: gitquorum up" in nobody

    back = own.cli("up", "--json").json()
    assert (back["already_up"], back["started"]) == (False, ["node-1", "node-2", "node-3"])
    assert own.ls_remote(3, name) == {"refs/heads/main": oid}, "repositories stay"
    own.agree(name)
    (shown,) = own.status()["repositories"]
    assert (shown["repo_id"], {each["version"] for each in shown["replicas"]}) == (name, {2})
    own.cli("down", "--purge")
    assert not own.home.exists()
    assert not own.processes()
    assert own.cli("down", "--purge").code == 0, "nothing to do is no error"


def test_up_names_who_holds_its_port_and_leaves_nothing_half_done(direct: Cluster, own: Cluster) -> None:
    """The session's cluster is in the way."""
    own.folder.mkdir()
    line = told(_cli(own, "up", "--base-port", str(direct.base_port - 1), "--broker", "direct"), Exit.FAILED)
    assert f"{direct.base_port}" in line
    assert str(direct.pid(1)) in line, "the process is named"
    assert "--base-port" in line, "and a way out"
    assert not (own.home / "cluster.json").exists()
    assert not own.processes()


def test_the_port_of_a_killed_node_taken_by_a_stranger_is_named_by_start_and_doctor(direct: Cluster) -> None:
    direct.kill(3)
    port = str(direct.base_port + 2)
    stranger = psutil.Popen([sys.executable, "-c", STRANGER, port], stdout=subprocess.PIPE)
    try:
        assert stranger.stdout.readline()
        line = told(_cli(direct, "start", "node-3"), Exit.FAILED)
        assert port in line
        assert str(stranger.pid) in line
        (port_problem,) = [each for each in findings(_cli(direct, "doctor", "--json"))["problem"] if each["check"] == "ports"]
        assert port_problem["fix"] == f"kill {stranger.pid}"
        assert stranger.is_running()
    finally:
        stranger.kill()
        stranger.wait(timeout=10)
        stranger.stdout.close()
    direct.start(3)


# ---------------------------------------------------------------- kill, start, status, doctor


def test_kill_and_start_are_seen_by_status_and_doctor(rabbitmq: Cluster, work: Work) -> None:
    name = rabbitmq.create(label="command")
    well = rabbitmq.cli("doctor", "--json")
    assert "problem" not in findings(well)
    assert {"git", "broker", "configuration", "nodes", "broker in use"} <= {each["check"] for each in well.json()}

    killed = rabbitmq.cli("kill", "3", "--json")
    rabbitmq.tainted(3)
    assert killed.json()["node"] == "node-3"
    assert not psutil.pid_exists(killed.json()["pid"]) or psutil.Process(killed.json()["pid"]).status() == "zombie"
    assert "was not running" in rabbitmq.cli("kill", "node-3").err, "no error"
    state = rabbitmq.status()
    assert [node["running"] for node in state["nodes"]] == [True, True, False]
    assert state["nodes"][2]["reason"] == "not running; start it with: gitquorum start node-3"
    assert state["broker"]["running"] is True
    work.commit()
    work.git("push", "--quiet", rabbitmq.url(1, name), "HEAD:main")

    ill = _cli(rabbitmq, "doctor", "--json")
    assert ill.code == Exit.FAILED
    assert "1 problem found" in ill.err
    (problem,) = findings(ill)["problem"]
    assert "node-3 is gone" in problem["detail"]
    assert problem["fix"] == "gitquorum start node-3"
    started = rabbitmq.cli(*problem["fix"].split()[1:], "--json").json()
    assert (started["node"], started["started"]) == ("node-3", True)
    assert rabbitmq.cli("start", "3", "--json").json()["started"] is False, "no error"
    wait(rabbitmq.ready, 10, "the cluster is whole again")
    rabbitmq.agree(name)


def test_status_tells_people_and_programs_the_same(own_rabbitmq: Cluster) -> None:
    state, text = own_rabbitmq.status(), own_rabbitmq.cli("status").out
    for node in state["nodes"]:
        assert re.search(rf"{node['id']} +{node['url']} +{node['pid']} +ready", text)
        assert node["health"]["broker"]["name"] == "rabbitmq"
    assert own_rabbitmq.source
    assert state["broker"]["kind"] == own_rabbitmq.source.kind
    assert state["broker"]["management_url"] in text


def test_a_second_serve_on_a_running_nodes_data_is_refused_with_one_clear_line(direct: Cluster) -> None:
    """On a port of its own, so that it is the data directory's lock that refuses."""
    name = direct.create(label="command")
    environment = {**os.environ, "GITQUORUM_PORT": str(free_port_range(1))}
    command = [sys.executable, "-P", "-m", "node", "serve", "--config", str(direct.home / "node-2" / "node.toml")]
    ran = run(command, environment, direct.folder, ok=False)
    assert ran.code == Exit.FAILED
    (line,) = ran.err.strip().splitlines()
    assert line.startswith("gitquorum: ")
    assert "in use" in line or "another process" in line
    assert str(direct.home / "node-2" / "data") in line
    assert direct.ready()
    assert direct.agree(name) == 1


# ---------------------------------------------------------------- repositories, transactions, exit codes


def test_repositories_are_created_listed_shown_and_deleted(rabbitmq: Cluster, work: Work) -> None:
    name = f"command/lifecycle-{time.monotonic_ns()}"
    created = rabbitmq.cli("repo", "create", name, "--node", "2", "--json").json()
    assert (created["repo_id"], created["version"], created["quorum"]) == (name, 1, 2)
    assert f"{name} exists already" in told(_cli(rabbitmq, "repo", "create", name), Exit.FAILED)
    work.commit()
    pushed = work.git("push", rabbitmq.url(1, name), "HEAD:main")
    rabbitmq.agree(name)
    listed = {each["repo_id"]: each for each in rabbitmq.cli("repo", "list", "--node", "3", "--json").json()}
    assert listed[name]["version"] == 2
    assert re.search(rf"{name} +2 +refs/heads/main", rabbitmq.cli("repo", "list").out)
    shown = rabbitmq.cli("repo", "show", name, "--json").json()
    assert shown["version"] == 2
    assert {(each["state"], each["digest"]) for each in shown["replicas"]} == {("current", shown["digest"])}
    for node in NODES:
        found = rabbitmq.tx_show(pushed.transaction, node)
        assert (found["outcome"], found["version"], found["node_id"]) == ("committed", 2, "node-1")
    assert "committed" in rabbitmq.cli("tx", "show", pushed.transaction).out
    assert "delete without asking with: --yes" in told_last(_cli(rabbitmq, "repo", "delete", name), Exit.USAGE)
    assert rabbitmq.agree(name) == 2
    deleted = rabbitmq.cli("repo", "delete", name, "--yes", "--json").json()
    assert (deleted["deleted"], deleted["version"]) == (True, 3)
    assert name in told(_cli(rabbitmq, "repo", "show", name), Exit.NOT_FOUND)
    assert name in told(_cli(rabbitmq, "repo", "delete", name, "--yes"), Exit.NOT_FOUND)


def told_last(ran: Ran, code: Exit) -> str:
    """As ``told``, for a command that asked a question first."""
    assert ran.code == code, ran.said
    return ran.err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("repo", "create", "a/b.git"), Exit.USAGE, "must not end in .git"),
        (("repo", "create", "../x"), Exit.USAGE, "owner must be"),
        (("repo", "show", "command/none"), Exit.NOT_FOUND, "does not exist|command/none"),
        (("tx", "show", "20200101-00000000000000000000"), Exit.NOT_FOUND, "transaction 20200101"),
        (("tx", "show", "no such"), Exit.USAGE, "transaction id"),
        (("repo", "list", "--node", "node-7"), Exit.NOT_FOUND, "no node 'node-7'"),
        (("repo", "list", "--node", "http://127.0.0.1:9"), Exit.UNAVAILABLE, "does not answer"),
        (("kill", "node-9"), Exit.NOT_FOUND, "no node 'node-9'"),
        (("start", "node-7"), Exit.NOT_FOUND, "there are: node-1, node-2, node-3"),
        (("broker", "kill"), Exit.USAGE, "has no broker"),
        (("up", "--broker", "http://x"), Exit.USAGE, "broker"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line_with_its_exit_code(
    direct: Cluster, arguments: tuple[str, ...], code: Exit, words: str
) -> None:
    assert re.search(words, told(_cli(direct, *arguments), code))


def test_exit_codes_tell_aborted_from_unknown(direct: Cluster) -> None:
    """5: sent, and not known; ``tx show`` tells, once the others are back. 4: certainly not done.

    Node 1 owns the ballot of a name that it wrote before (C2): it sends its prepare at once, and hears nothing.
    """
    name = f"command/doubt-{time.monotonic_ns()}"
    for _ in range(3):
        # Should the command take longer to start than the nodes take to miss a peer, nothing is sent: once more then.
        direct.cli("repo", "create", name, "--node", "1")
        direct.cli("repo", "delete", name, "--node", "1", "--yes")
        direct.agree_on_absence(name)
        direct.pause(2)
        direct.pause(3)
        doubtful = _cli(direct, "repo", "create", name, "--node", "1")
        if doubtful.code == Exit.UNKNOWN:
            break
        _resume(direct)
    line = told(doubtful, Exit.UNKNOWN)
    assert f"gitquorum tx show {doubtful.transaction}" in line
    assert doubtful.seconds < 6
    wait(lambda: direct.get(1, "/readyz?role=write").status == 503, 5, "node-1 knows that it is alone")
    refused = told(_cli(direct, "repo", "create", f"{name}-2", "--node", "1"), Exit.UNAVAILABLE)
    assert re.search("node-2.*node-3", refused)
    _resume(direct)
    shown = wait(lambda: _settled(direct, doubtful.transaction), 10, "the doubt is settled")
    if shown["outcome"] == "committed":
        direct.agree(name)
        assert txns_of(direct.history(3, name)[-1]) == [doubtful.transaction]
    else:
        assert shown["outcome"] == "aborted"
        direct.agree_on_absence(name)
    direct.agree_on_absence(f"{name}-2")


def test_the_installed_script_is_the_same_command(direct: Cluster) -> None:
    script = Path(sys.executable).with_name("gitquorum")
    if not script.exists():
        found = shutil.which("gitquorum")
        assert found, "pyproject.toml's script is installed"
        script = Path(found)
    ran = run([str(script), "-C", str(direct.home), "status", "--json"], os.environ, direct.folder)
    assert json.loads(ran.out)["ready"] is True


# ---------------------------------------------------------------- helpers


def _cli(cluster: Cluster, *arguments: str) -> Ran:
    """The command, whatever it returns."""
    cluster.folder.mkdir(parents=True, exist_ok=True)
    return cluster.cli(*arguments, ok=False)


def _resume(cluster: Cluster) -> None:
    cluster.resume(2)
    cluster.resume(3)
    wait(cluster.ready, 10, "the cluster is whole again")


def _settled(cluster: Cluster, txn: str) -> dict[str, Any]:
    """What ``tx show`` says once it is certain; empty before."""
    ran = _cli(cluster, "tx", "show", txn, "--node", "1", "--json")
    shown: dict[str, Any] = ran.json() if ran.code == 0 else {}
    return shown if shown.get("outcome") in ("committed", "aborted") else {}
