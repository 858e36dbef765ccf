"""No stranger is ever signalled; logs and environments of nodes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from node.command import processes
from node.command.sockets import wait_for
from node.command.state import NodePlace


@pytest.fixture
def node(tmp_path: Path) -> NodePlace:
    place = NodePlace("node-1", 3001, tmp_path)
    place.config.write_text("")
    return place


def remember(node: NodePlace, pid: int, created_at: float) -> None:
    node.process.write_text(json.dumps({"pid": pid, "created_at": created_at}))


def test_a_reused_pid_is_not_taken_for_the_node(node: NodePlace) -> None:
    """This very test process: right pid, right start time, but a command line without the node's configuration."""
    remember(node, os.getpid(), psutil.Process().create_time())
    assert processes.running(node) is None
    assert processes.kill(node) is None
    assert processes.stop([node], 0.1) == {"node-1": "was not running"}


def test_the_right_command_line_with_another_start_time_is_a_stranger(node: NodePlace) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", str(node.config)]) as other:
        try:
            right = psutil.Process(other.pid).create_time()
            remember(node, other.pid, right - 60)
            assert processes.running(node) is None
            remember(node, other.pid, right)
            assert wait_for(lambda: str(node.config) in psutil.Process(other.pid).cmdline(), 5)
            found = processes.running(node)
            assert found is not None
            assert found.pid == other.pid
        finally:
            other.kill()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}', '{"pid": 1}'])
def test_a_damaged_process_file_means_not_running(node: NodePlace, text: str) -> None:
    node.process.write_text(text)
    assert processes.running(node) is None


def test_a_zombie_counts_as_gone(node: NodePlace) -> None:
    child = processes.start(node, [sys.executable, "-c", "pass", str(node.config)])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert processes.running(node) is None
    assert processes.wait_gone([child], 0) == []


def test_a_node_gets_the_environment_without_what_belongs_to_one_node() -> None:
    environ = {"PATH": "/bin", "GITQUORUM_PORT": "1", "GITQUORUM_DATA_DIR": "/x", "GITQUORUM_PREPARE_TIMEOUT_S": "5"}
    assert processes.node_environment(environ) == {"PATH": "/bin", "GITQUORUM_PREPARE_TIMEOUT_S": "5"}


def test_a_node_is_detached_and_logs_to_its_file(node: NodePlace) -> None:
    script = "import os, sys; print('session', os.getsid(0) == os.getpid()); print('cwd', os.getcwd()); sys.stdin.read()"
    child = processes.start(node, [sys.executable, "-c", script, str(node.config)])
    os.waitid(os.P_PID, child.pid, os.WEXITED)
    assert processes.last_lines(node.log) == ["session True", f"cwd {node.folder}"]


def test_a_big_log_is_set_aside_at_the_next_start(node: NodePlace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "LOG_BYTES_MAX", 10)
    node.log.write_text("x" * 11)
    child = processes.start(node, [sys.executable, "-c", "print('new')", str(node.config)])
    os.waitid(os.P_PID, child.pid, os.WEXITED)
    assert node.log.read_text() == "new\n"
    assert node.log.with_name("log.1").read_text() == "x" * 11
