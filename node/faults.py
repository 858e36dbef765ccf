"""Fault points: places where a test can make this process die, to see what the others make of it.

Off unless ``Config.fault_points`` names them. A fault that fires says so on stderr first, so that a test can count it.
"""

import os
import signal
import sys
from collections.abc import Collection
from enum import Enum


class FaultPoint(Enum):
    """Where a process can be made to die."""

    BEFORE_DECISION = "before-decision"
    """The coordinator has counted a quorum; nothing of the decision is written or sent."""
    BEFORE_COMMIT_SENT = "before-commit-sent"
    """The coordinator's decision is durable; no peer has heard of it."""
    AFTER_ACCEPT = "after-accept"
    """A voter has accepted durably; its vote is not sent."""


class Faults:
    """Kills this process (SIGKILL) at the points it was told."""

    def __init__(self, armed: Collection[FaultPoint] = ()) -> None:
        self._armed = frozenset(armed)

    def hit(self, point: FaultPoint) -> None:
        """Die here, if armed."""
        if point in self._armed:
            sys.stderr.write(f"fault {point.value} fired\n")
            sys.stderr.flush()
            os.kill(os.getpid(), signal.SIGKILL)
