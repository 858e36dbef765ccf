"""Whom a drill hits, and with what: each fault begins, and ends whatever happened in between.

    kill        SIGKILL, then started again with the environment it had      nodes of ``gitquorum up`` on this machine
    pause       SIGSTOP, then SIGCONT                                        the same
    partition   ``PUT /drill/isolation`` on the node, which ends by itself   any node started with ``drill_token``

One node at a time: a cluster of three survives one.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import psutil

from node.command import processes
from node.command.client import NodeSilent, request
from node.command.faults import kill_node, start_node
from node.command.output import CommandError, Exit, Output
from node.command.state import Home, NodePlace

KINDS = ("kill", "pause", "partition")
TOKEN_HEADER = "X-Gitquorum-Drill"
TOKEN_VARIABLE = "GITQUORUM_DRILL_TOKEN"
ASK_TIMEOUT_S = 5.0
ISOLATION_SPARE_S = 10.0
"""A partition that nobody ends lasts this much longer than it should have."""


@dataclass(frozen=True, slots=True)
class Target:
    """One node; ``place`` if its process is on this machine and ours to signal."""

    id: str
    url: str
    place: NodePlace | None = None
    token: str = ""


class Fault(Protocol):
    """What is done to one node. ``end`` may be called at any time, again, and when ``begin`` failed half-way."""

    kind: str
    target: Target

    def begin(self) -> None:
        """Raises ``CommandError``."""
        ...

    def end(self) -> None:
        """Raises ``CommandError`` that says what to type."""
        ...


class Kill:
    """SIGKILL and a start."""

    kind = "kill"

    def __init__(self, home: Home, target: Target, output: Output) -> None:
        self.target = target
        self._home = home
        self._output = output
        self._environ: Mapping[str, str] | None = None

    def begin(self) -> None:
        self._environ = environment(_process(self.target))
        kill_node(self._home, self.target.id, self._output)

    def end(self) -> None:
        if self._environ is not None:
            start_node(self._home, self.target.id, self._output, self._environ)


class Pause:
    """SIGSTOP and SIGCONT, to the process that was stopped and no other."""

    kind = "pause"

    def __init__(self, target: Target) -> None:
        self.target = target
        self._process: psutil.Process | None = None

    def begin(self) -> None:
        self._process = _process(self.target)
        self._process.suspend()

    def end(self) -> None:
        try:
            if self._process is not None:
                self._process.resume()
        except psutil.NoSuchProcess as error:
            raise CommandError(
                f"{self.target.id} ended while it was paused; start it: gitquorum start {self.target.id}"
            ) from error


class Partition:
    """The node's own gate, closed for a time."""

    kind = "partition"

    def __init__(self, target: Target, hold_s: float) -> None:
        self.target = target
        self._seconds = min(hold_s + ISOLATION_SPARE_S, 60.0)

    def begin(self) -> None:
        if reason := _isolation(self.target, "PUT", {"seconds": self._seconds}):
            raise CommandError(f"{self.target.id} cannot be cut off: {reason}", Exit.UNAVAILABLE)

    def end(self) -> None:
        if reason := _isolation(self.target, "DELETE"):
            raise CommandError(f"{self.target.id}: {reason}; its partition ends by itself within {self._seconds:.0f} s")


def why_not(kind: str, target: Target) -> str:
    """Why this fault cannot be made here, or empty."""
    if kind == "partition":
        return _isolation(target, "GET")
    if target.place is None:
        return f"{target.id} is given by URL: its process is not this command's to signal"
    return "" if processes.running(target.place) is not None else f"{target.id} does not run"


def environment(process: psutil.Process) -> dict[str, str]:
    """What the node was started with: settings of its first start stay when it is started again."""
    try:
        return dict(process.environ())
    except psutil.Error:
        return dict(os.environ)


def token_of(place: NodePlace) -> str:
    """The drill token that a local node runs with: from its environment or its configuration; empty if there is none."""
    process = processes.running(place)
    if process is not None and (found := environment(process).get(TOKEN_VARIABLE)):
        return found
    lines = place.config.read_text().splitlines() if place.config.is_file() else []
    said = (line.partition("=") for line in lines if line.partition("=")[0].strip() == "drill_token")
    return next((value.strip().strip("\"'") for _, _, value in said), "")


def _process(target: Target) -> psutil.Process:
    process = processes.running(target.place) if target.place is not None else None
    if process is None:
        raise CommandError(f"{target.id} does not run; start it: gitquorum start {target.id}", Exit.UNAVAILABLE)
    return process


def _isolation(target: Target, method: str, body: Mapping[str, float] | None = None) -> str:
    """Empty, or why not."""
    if not target.token:
        return f"{target.id} runs without drill_token (start its cluster with {TOKEN_VARIABLE} set)"
    headers = {TOKEN_HEADER: target.token}
    try:
        answer = request(target.url, method, "/drill/isolation", body=body, headers=headers, timeout_s=ASK_TIMEOUT_S)
    except NodeSilent as error:
        return str(error)
    if answer.status == 404:
        return f"{target.id} runs without drill_token, or with another one"
    return "" if answer.ok else answer.reason
