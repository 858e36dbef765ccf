"""``gitquorum repair``: what it asks the node, and what it says of a repository that is not there."""

from types import SimpleNamespace
from typing import Any

import pytest

from node.command import repair as command
from node.command.client import Answer
from node.command.output import CommandError, Exit, Output

HOME: Any = SimpleNamespace(load=lambda: SimpleNamespace(node=lambda name: SimpleNamespace(id=name, url="http://node")))


def answers(monkeypatch: pytest.MonkeyPatch, known: Answer, found: tuple[str, ...] = (), would: str = "") -> list[str]:
    asked: list[str] = []

    def get(url: str, path: str, *_: object, **__: object) -> Answer:
        asked.append(path)
        return (
            known if path.startswith("/repos/") else Answer(200, {"repo_id": "alice/one", "found": list(found), "would": would})
        )

    def post(url: str, method: str, path: str, **_: object) -> Answer:
        asked.append(f"{method} {path}")
        return Answer(200, {"found": list(found), "actions": ["pack fetched"], "problem": ""})

    monkeypatch.setattr(command, "get", get)
    monkeypatch.setattr(command, "request", post)
    return asked


def test_a_repository_that_is_not_there_is_no_whole_one(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, Answer(404, {"detail": "repository alice/nope does not exist"}))
    with pytest.raises(CommandError, match="alice/nope on node-2: repository alice/nope does not exist") as error:
        command.repair(HOME, "alice/nope", "node-2", Output(as_json=True), yes=False)
    assert error.value.code is Exit.NOT_FOUND


@pytest.mark.parametrize("status", [200, 503], ids=["served", "set aside"])
def test_without_yes_nothing_is_done_and_the_plan_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], status: int
) -> None:
    asked = answers(monkeypatch, Answer(status, {}), ("pack: p is not what was written",), "the whole node would rejoin")
    command.repair(HOME, "alice/one", "node-2", Output(), yes=False)
    said = capsys.readouterr().out
    assert "pack: p is not what was written" in said
    assert "alice/one on node-2: the whole node would rejoin" in said
    assert "do it with: --yes" in said
    assert not any(path.startswith("POST") for path in asked)


def test_with_yes_it_is_done(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked = answers(monkeypatch, Answer(200, {}), ("pack: p is not what was written",))
    command.repair(HOME, "alice/one", "node-2", Output(), yes=True)
    assert "pack fetched" in capsys.readouterr().out
    assert asked[-1] == "POST /repair/alice/one"


def test_a_replica_that_is_set_aside_is_no_whole_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers(monkeypatch, Answer(503, {}), would="it would stay set aside, for what no repair ends: two digests")
    command.repair(HOME, "alice/one", "node-2", Output(), yes=False)
    said = capsys.readouterr().out
    assert "two digests" in said
    assert "whole" not in said
    command.repair(HOME, "alice/one", "node-2", Output(), yes=True)
    assert "whole" not in capsys.readouterr().out
