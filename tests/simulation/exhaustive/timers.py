"""Which deadlines a node's machines wait for, and what it means that one passes.

Firing sets exactly that deadline to the past; the machine is then fed a ``Tick``. See ``copying.py`` for why time is not
modelled otherwise.
"""

from collections.abc import Iterable
from dataclasses import replace

from node.protocol.batch import Pending
from node.protocol.coordinator import Coordinator
from node.protocol.coordinator_states import State
from node.protocol.proposal import Kind
from node.protocol.rejoin import Rejoin
from node.protocol.rejoin_states import Step
from node.protocol.session import Phase
from node.protocol.voter import Voter
from tests.simulation.exhaustive.copying import PAST
from tests.simulation.exhaustive.happenings import Timer

JUST_PAST = -0.1
"""The deadline is over, the time for an abort is not (``Timing.abort_s``): the client is not told ``unknown`` yet."""

_UNDER_WAY = (State.PREPARING, State.ABORTING)


def pending(voter: Voter, coordinator: Coordinator) -> Iterable[Timer]:
    """Every timer that may fire now, in a fixed order."""
    if voter.record.in_doubt is not None and not voter.stopped:
        yield Timer("settle")
    for session in voter._sessions.values():
        if session.phase is not Phase.PROMISING:
            yield Timer("too late", session.request)
    state, proposal = coordinator.state, coordinator._proposal
    if state is State.WAITING:
        yield Timer("resume")
    if state in (State.CLAIMING, State.LEARNING):
        yield Timer("claim over")
        if state is State.CLAIMING and coordinator.me in coordinator._promises:
            yield Timer("claim again")
    if state in _UNDER_WAY and proposal is not None:
        if proposal.kind is Kind.NEW:
            yield Timer("deadline")
        yield Timer("send again")
    doubted = coordinator._doubt.pendings if coordinator._doubt is not None else []
    if any(not one.answered for one in doubted) or coordinator._queue:
        yield Timer("give up")


def pending_at(rejoin: Rejoin) -> Iterable[Timer]:
    """The same, of a rejoining node."""
    if rejoin.step is Step.WAITING:
        yield Timer("rejoin pause")
    elif rejoin.step in (Step.ASKING, Step.ENROLLING, Step.LISTING):
        yield Timer("rejoin ask again")
        yield Timer("rejoin too late")


def fire_at(timer: Timer, rejoin: Rejoin) -> None:
    if timer.name == "rejoin ask again":
        rejoin._resend_at = PAST
    else:
        rejoin._until = PAST


def fire(timer: Timer, voter: Voter, coordinator: Coordinator) -> Voter | Coordinator:
    """Let it pass; whom to tell."""
    proposal = coordinator._proposal
    match timer.name:
        case "settle":
            voter._settle_at = PAST
            return voter
        case "too late":
            voter._sessions[timer.request].deadline_at = PAST
            return voter
        case "resume":
            coordinator._resume_at = PAST
        case "claim over":
            coordinator._claim_deadline_at = PAST
        case "claim again":
            coordinator._claim_resend_at = PAST
        case "deadline":
            assert proposal is not None
            proposal.deadline_at = PAST
            if coordinator._doubt is not None:
                _expire(coordinator._doubt.pendings, JUST_PAST)
        case "send again":
            assert proposal is not None
            proposal.resend_at = PAST
        case "give up":
            _expire(coordinator._queue, PAST)
            if coordinator._doubt is not None:
                _expire(coordinator._doubt.pendings, PAST)
        case _:
            raise ValueError(f"no timer is called {timer.name!r}")
    return coordinator


def _expire(pendings: list[Pending], at: float) -> None:
    for one in pendings:
        one.submitted = replace(one.submitted, deadline_at=min(at, one.submitted.deadline_at))
