"""The command line itself: exit codes, one line per error, JSON on stdout and nothing else there."""

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

import node.__main__ as command
from node.command import doctor, faults
from node.command.init import init
from node.command.output import CommandError, Exit
from node.command.state import Home
from node.ports.errors import JournalRefused
from tests.unit.command_cluster import Recorder, base_port, fake_home


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    yield from fake_home(tmp_path, monkeypatch)


def run(home: Home, *arguments: str) -> int:
    return command.main(["--directory", str(home.folder), *arguments])


@pytest.mark.parametrize("arguments", [["status"], ["kill", "1"], ["start", "1"], ["repo", "list"], ["broker", "kill"]])
def test_without_a_cluster_commands_say_how_to_make_one_and_make_nothing(
    home: Home, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert run(home, *arguments) == Exit.NOT_FOUND
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "start one with: gitquorum up" in said.err
    assert not home.folder.exists()


@pytest.mark.parametrize("arguments", [["nonsense"], ["kill"], ["up", "--nodes", "x"], ["up", "--broker", "rabbit"]])
def test_a_wrong_command_line_is_exit_2(home: Home, arguments: list[str]) -> None:
    assert run(home, *arguments) == Exit.USAGE


def test_json_is_all_there_is_on_stdout(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    port = str(base_port())
    assert run(home, "up", "--broker", "direct", "--base-port", port, "--json") == Exit.OK
    up = capsys.readouterr()
    assert [node["id"] for node in json.loads(up.out)["nodes"]] == ["node-1", "node-2", "node-3"]
    assert "no broker: direct transport" in up.err
    for arguments in (["status", "--json"], ["repo", "list", "--json"], ["doctor", "--json"], ["kill", "2", "--json"]):
        assert run(home, *arguments) == Exit.OK
        json.loads(capsys.readouterr().out)
    assert run(home, "down", "--json") == Exit.OK
    assert json.loads(capsys.readouterr().out)["nodes"]["node-2"] == "was not running"


def test_the_folder_comes_from_the_environment_too(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GITQUORUM_HOME", str(home.folder))
    assert command.main(["init", "--nodes", "1", "--json"]) == Exit.OK
    assert json.loads(capsys.readouterr().out)["directory"] == str(home.folder)


def test_init_twice_fails_and_says_force(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(home, "init") == Exit.OK
    assert run(home, "init") == Exit.FAILED
    assert "--force" in capsys.readouterr().err


def test_an_expected_failure_has_no_traceback(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise JournalRefused("the journal belongs to node-2")

    init(home)
    monkeypatch.setattr(faults, "kill_node", refuse)
    assert run(home, "kill", "1") == Exit.FAILED
    assert capsys.readouterr().err == "gitquorum: the journal belongs to node-2\n"


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    names = [each.name or (each.callback.__name__ if each.callback else "") for each in command.app.registered_commands]
    for name in [*names, "broker kill", "broker start", "repo create", "repo list", "repo show", "repo delete", "tx show"]:
        assert command.main([*name.split(), "--help"]) == Exit.OK
        assert "Usage:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("said", "state"),
    [
        ("git version 2.39.5", "ok"),
        ("git version 2.31.0 (Apple Git-1)", "ok"),
        ("git version 2.30.2", "problem"),
        ("git version 1.8", "problem"),
        ("?", "problem"),
    ],
)
def test_doctor_knows_which_git_is_too_old(said: str, state: str) -> None:
    assert doctor.judge_git(said).state == state


def test_doctor_names_each_problem_with_the_command_that_fixes_it(home: Home) -> None:
    cluster = init(home, nodes=3, base_port=base_port())
    first, second, third = cluster.nodes
    first.key.chmod(0o644)
    second.config.write_text(second.config.read_text() + '\n[[members]]\nid = "-"\nurl = "x"\npublic_keys = []\n')
    third.process.write_text('{"pid": 1, "created_at": 0}')
    output = Recorder()
    with pytest.raises(CommandError) as refused:
        doctor.doctor(home, output)
    assert refused.value.code is Exit.FAILED
    found = [*doctor.configurations(home, cluster), *doctor.stale_pids(home, cluster)]
    assert [finding.state for finding in found] == ["problem", "problem", "ok", "problem"]
    assert found[0].fix == f"chmod 600 {first.key}"
    assert "is not an http:// or https:// URL" in found[1].detail
    assert "\n" not in found[1].detail
    assert found[3].fix == "gitquorum start node-3"


def test_doctor_finds_who_holds_a_port(home: Home) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        place = home.place("node-1", listener.getsockname()[1])
        (finding,) = doctor.ports_free([place])
    assert (finding.state, finding.fix) == ("problem", f"kill {os.getpid()}")
