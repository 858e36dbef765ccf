"""``gitquorum up``, ``down``, ``kill``, ``start``, ``status`` against fake node processes."""

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from node.command import faults, processes
from node.command.down import down
from node.command.output import CommandError, Exit
from node.command.state import Home
from node.command.status import status
from node.command.up import Wish, next_steps, up
from tests.unit.command_cluster import Recorder, base_port, fake_home


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    yield from fake_home(tmp_path, monkeypatch)


@pytest.fixture
def wish() -> Wish:
    return Wish(nodes=3, base_port=base_port(), broker="direct")


def pids(home: Home) -> dict[str, int | None]:
    return {node.id: (process.pid if (process := processes.running(node)) else None) for node in home.load().nodes}


def test_up_makes_and_starts_three_nodes_and_says_which_broker(home: Home, wish: Wish) -> None:
    output = Recorder()
    result = up(home, wish, output)
    assert result["started"] == ["node-1", "node-2", "node-3"]
    assert result["broker"]["kind"] == "direct"
    assert any(line.startswith("broker: no broker: direct transport") for line in output.said)
    assert all(pids(home).values())
    assert f":{wish.base_port}/alice/project.git" in next_steps(result, "gitquorum")


def test_up_when_already_up_says_so_and_starts_nothing(home: Home, wish: Wish) -> None:
    up(home, wish, Recorder())
    before = pids(home)
    output = Recorder()
    result = up(home, Wish(), output)
    assert result["already_up"]
    assert result["started"] == []
    assert pids(home) == before
    assert output.said[-1].startswith("already up: 3 nodes")


def test_up_when_half_up_starts_what_is_missing_only(home: Home, wish: Wish) -> None:
    up(home, wish, Recorder())
    before = pids(home)
    faults.kill_node(home, "node-2", Recorder())
    result = up(home, Wish(), Recorder())
    after = pids(home)
    assert result["started"] == ["node-2"]
    assert (after["node-1"], after["node-3"]) == (before["node-1"], before["node-3"])
    assert after["node-2"] not in (None, before["node-2"])


def test_up_with_a_port_in_use_names_the_holder_and_makes_nothing(home: Home, wish: Wish) -> None:
    assert wish.base_port is not None
    with socket.create_server(("127.0.0.1", wish.base_port + 1)), pytest.raises(CommandError) as refused:
        up(home, wish, Recorder())
    assert f"port {wish.base_port + 1} is in use by pid {os.getpid()}" in str(refused.value)
    assert f"kill {os.getpid()}" in str(refused.value)
    assert not home.exists


def test_up_says_the_last_words_of_a_node_that_ends(home: Home, wish: Wish) -> None:
    up(home, wish, Recorder())
    node = home.load().node("node-3")
    processes.kill(node)
    (node.folder / "die").touch()
    with pytest.raises(CommandError, match="node-3 ended: gitquorum: the journal is damaged"):
        up(home, Wish(), Recorder())


def test_up_that_never_gets_ready_is_unavailable_and_says_why(home: Home, wish: Wish) -> None:
    up(home, wish, Recorder())
    node = home.load().node("node-1")
    (node.folder / "not-ready").touch()
    with pytest.raises(CommandError, match=r"node-1: node-2 and node-3 are suspected") as refused:
        up(home, Wish(), Recorder(), ready_timeout_s=0.5)
    assert refused.value.code is Exit.UNAVAILABLE


def test_up_refuses_another_number_of_nodes_or_broker_than_runs(home: Home, wish: Wish) -> None:
    up(home, wish, Recorder())
    for other in (Wish(nodes=5), Wish(base_port=4001), Wish(broker="local")):
        with pytest.raises(CommandError) as refused:
            up(home, other, Recorder())
        assert refused.value.code is Exit.USAGE


def test_a_named_broker_is_remembered_after_down(home: Home, wish: Wish) -> None:
    up(home, wish, Recorder())
    down(home, Recorder())
    assert up(home, Wish(), Recorder())["broker"]["kind"] == "direct"


def test_down_ends_every_process_and_keeps_the_data(home: Home, wish: Wish) -> None:
    up(home, wish, Recorder())
    processes_before = [psutil.Process(pid) for pid in pids(home).values() if pid]
    result = down(home, Recorder())
    assert set(result["nodes"].values()) == {"stopped"}
    assert processes.wait_gone(processes_before, 0) == []
    assert home.load().node("1").key.is_file()


def test_down_kills_a_node_that_ignores_sigterm(home: Home, wish: Wish, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.command.down.STOP_TIMEOUT_S", 0.5)
    up(home, wish, Recorder())
    node = home.load().node("node-2")
    processes.kill(node)
    (node.folder / "stubborn").touch()
    up(home, Wish(), Recorder())
    how = down(home, Recorder())["nodes"]
    assert how == {"node-1": "stopped", "node-2": "killed: it did not stop in time", "node-3": "stopped"}


def test_down_purge_removes_only_what_is_the_clusters(home: Home, wish: Wish) -> None:
    up(home, wish, Recorder())
    (home.folder / "notes.txt").write_text("mine")
    down(home, Recorder(), purge=True)
    assert [path.name for path in home.folder.iterdir()] == ["notes.txt"]


def test_down_without_a_cluster_is_no_error_and_makes_no_folder(home: Home) -> None:
    assert down(home, Recorder())["broker"] == "none"
    assert not home.folder.exists()


def test_kill_is_sigkill_and_start_brings_the_node_back(home: Home, wish: Wish) -> None:
    up(home, wish, Recorder())
    process = processes.running(home.load().node("node-3"))
    assert process is not None
    killed = faults.kill_node(home, "3", Recorder())
    assert killed == {"node": "node-3", "killed": True, "pid": process.pid}
    assert os.waitid(os.P_PID, process.pid, os.WEXITED).si_status == signal.SIGKILL  # type: ignore[union-attr]
    assert faults.kill_node(home, "3", Recorder())["killed"] is False
    assert faults.start_node(home, "3", Recorder())["started"] is True
    assert faults.start_node(home, "3", Recorder())["started"] is False


def test_an_unknown_node_is_not_found(home: Home, wish: Wish) -> None:
    up(home, wish, Recorder())
    with pytest.raises(CommandError, match="there are: node-1, node-2, node-3") as refused:
        faults.kill_node(home, "node-4", Recorder())
    assert refused.value.code is Exit.NOT_FOUND


def test_status_tells_a_dead_node_from_one_that_cannot_write(home: Home, wish: Wish) -> None:
    up(home, wish, Recorder())
    cluster = home.load()
    processes.kill(cluster.node("node-2"))
    (cluster.node("node-3").folder / "not-ready").touch()
    state = status(home, Recorder(as_json=True))
    by_id = {node["id"]: node for node in state["nodes"]}
    assert [by_id[name]["ready"] for name in ("node-1", "node-2", "node-3")] == [True, False, False]
    assert by_id["node-2"]["reason"] == "not running; start it with: gitquorum start node-2"
    assert by_id["node-3"]["serving"]
    assert by_id["node-3"]["reason"] == "node-2 and node-3 are suspected"
    assert state["repositories"][0]["replicas"][0]["version"] == 4
    assert not state["ready"]


def test_breaking_a_broker_that_is_not_there_is_a_usage_error(home: Home, wish: Wish) -> None:
    up(home, wish, Recorder())
    with pytest.raises(CommandError, match="direct transport") as refused:
        faults.kill_broker(home, Recorder())
    assert refused.value.code is Exit.USAGE
