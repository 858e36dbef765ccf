"""A cluster of fake nodes for the tests of the command: real processes, real ports, no broker."""

import io
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from node.command import processes
from node.command.output import Output
from node.command.sockets import free_ports, is_free
from node.command.state import Home, NodePlace

FAKE = Path(__file__).with_name("fake_node.py")


class Recorder(Output):
    """Keeps what was said."""

    def __init__(self, as_json: bool = False) -> None:
        super().__init__(as_json)
        self.said: list[str] = []
        self._err.file = io.StringIO()

    def progress(self, line: str) -> None:
        self.said.append(line)

    def warning(self, line: str) -> None:
        self.said.append(line)


def fake_command(node: NodePlace) -> list[str]:
    return [sys.executable, str(FAKE), "serve", "--config", str(node.config)]


def base_port(count: int = 3) -> int:
    """The first of ``count`` adjacent free ports, below the range that the kernel picks from for others."""
    for start in range(20_000 + free_ports(1)[0] % 9_000, 32_000, count):
        if all(is_free(start + number) for number in range(count)):
            return start
    raise AssertionError("no free ports")


def fake_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    """A folder whose nodes are fakes; every process it started is killed at the end."""
    monkeypatch.setattr(processes, "node_command", fake_command)
    home = Home(folder / "state")
    yield home
    if home.exists:
        with ExitStack() as stack:
            for node in home.load().nodes:
                stack.callback(processes.kill, node)
