"""What a coordinator is doing, and the whole table of what may follow what (C1–C8).

``docs/protocol.md`` shows this table as a diagram; ``coordinator.py`` says when which trigger is pulled.
"""

from collections.abc import Mapping
from enum import Enum


class State(Enum):
    """What the coordinator is doing."""

    IDLE = "idle"
    """Owns nothing, wants nothing."""
    CLAIMING = "claiming"
    """Its own promise is being written, or promises are being gathered."""
    LEARNING = "learning"
    """A promise named a higher committed version: catching up to it (C3)."""
    FETCHING = "fetching"
    """A change was found, its objects are being fetched (C3)."""
    OWNING = "owning"
    """Owns the round; nothing in flight."""
    ISSUING = "issuing"
    """The next attempt is being accepted durably here, before it is sent (C4)."""
    PREPARING = "preparing"
    """Counting votes for a change."""
    ABORTING = "aborting"
    """Counting votes for no change."""
    DECIDING = "deciding"
    """A quorum is counted; the commit is being signed and written."""
    WAITING = "waiting"
    """Ownership lost, or a claim failed: pausing before the next claim."""
    STOPPED = "stopped"
    """An alarm was raised; nothing is proposed any more."""


class Trigger(Enum):
    """Why the state changes."""

    WORK = "something to do"
    BEHIND = "a promise is ahead"
    FOUND = "a change was found"
    CLEAR = "nothing must be finished"
    ISSUE = "next attempt"
    ACCEPTED_CHANGE = "own yes is durable"
    ACCEPTED_NONE = "own yes to none is durable"
    QUORUM = "quorum counted"
    BLOCKED = "blocking set counted"
    DECIDED = "commit is durable"
    LOST = "ownership lost or overtaken"
    REST = "nothing left to do"
    ALARM = "alarm"


_ENDS: Mapping[Trigger, State] = {Trigger.LOST: State.WAITING, Trigger.ALARM: State.STOPPED}

TRANSITIONS: Mapping[State, Mapping[Trigger, State]] = {
    State.IDLE: {Trigger.WORK: State.CLAIMING, **_ENDS},
    State.CLAIMING: {
        Trigger.BEHIND: State.LEARNING,
        Trigger.FOUND: State.FETCHING,
        Trigger.CLEAR: State.OWNING,
        Trigger.ISSUE: State.ISSUING,
        **_ENDS,
    },
    State.LEARNING: {
        Trigger.FOUND: State.FETCHING,
        Trigger.CLEAR: State.OWNING,
        Trigger.ISSUE: State.ISSUING,
        **_ENDS,
    },
    State.FETCHING: {Trigger.ISSUE: State.ISSUING, **_ENDS},
    State.OWNING: {Trigger.ISSUE: State.ISSUING, **_ENDS},
    State.ISSUING: {
        Trigger.ACCEPTED_CHANGE: State.PREPARING,
        Trigger.ACCEPTED_NONE: State.ABORTING,
        **_ENDS,
    },
    State.PREPARING: {Trigger.QUORUM: State.DECIDING, Trigger.ISSUE: State.ISSUING, **_ENDS},
    State.ABORTING: {Trigger.BLOCKED: State.OWNING, **_ENDS},
    State.DECIDING: {Trigger.DECIDED: State.OWNING, **_ENDS},
    State.WAITING: {Trigger.WORK: State.CLAIMING, Trigger.REST: State.IDLE, **_ENDS},
    State.STOPPED: {Trigger.ALARM: State.STOPPED, Trigger.LOST: State.STOPPED},
}
