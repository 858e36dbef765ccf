"""Bugs to plant into the protocol core, so that the explorer shows that it finds them.

Each takes one rule of ``replication.md`` out while a ``with`` block lasts. The whole catalogue is ``tests/simulation/planted``;
these are the ones for which the document gives a schedule, and they are found within seconds.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

from node.protocol import quorum, reads
from node.protocol.acceptor import AcceptOp, AcceptorRecord, PromiseOp, WriteVerdict
from node.protocol.coordinator import Coordinator
from node.protocol.coordinator_states import State, Trigger
from node.protocol.effects import Decide
from node.protocol.messages import VoteKind
from node.protocol.proposal import Kind, Proposal
from node.protocol.quorum import Verdict, VoterSet, tally
from node.protocol.reads import Barrier
from node.protocol.rejoin import Rejoin, Restore
from node.protocol.voter import Voter


@dataclass(frozen=True, slots=True)
class Plant:
    """``bound``: the one that finds it."""

    name: str
    what: str
    bound: str
    planted: Callable[[], AbstractContextManager[Any]]


@contextmanager
def _finish_first() -> Iterator[None]:
    def examine(self: Coordinator, now: float) -> None:
        here = self.register.position
        if self._settling or self._doubt:
            self._issue(Kind.NONE, here, None, now + 2.0, now)
        else:
            self._move(Trigger.CLEAR)

    with patch.object(Coordinator, "_examine", examine):
        yield


@contextmanager
def _forget_on_abort() -> Iterator[None]:
    right = AcceptOp.on

    def on(self: AcceptOp, record: AcceptorRecord) -> tuple[AcceptorRecord, WriteVerdict]:
        after, verdict = right(self, record)
        if verdict is WriteVerdict.DONE and self.change is None:
            return replace(after, accepted=None), verdict
        return after, verdict

    with patch.object(AcceptOp, "on", on):
        yield


@contextmanager
def _quorum_minus_one() -> Iterator[None]:
    with patch.object(quorum, "majority", lambda voters: voters // 2):
        yield


@contextmanager
def _late_votes() -> Iterator[None]:
    right = Coordinator._on_vote

    def on_vote(self: Coordinator, sender: Any, vote: Any, now: float) -> None:
        doubt = self._doubt
        if doubt is None or vote.ballot != doubt.proposal.ballot or self._proposal is doubt.proposal:
            right(self, sender, vote, now)
            return
        if vote.kind is VoteKind.YES:
            first = doubt.proposal
            first.yes[sender] = vote
            if len(first.yes) >= first.quorum and self.state is State.ABORTING:
                self._proposal, self.state = first, State.DECIDING
                self._out.append(Decide(doubt.change, first.ballot, first.quorum, first.signed_votes(self.me)))

    with patch.object(Coordinator, "_on_vote", on_vote):
        yield


@contextmanager
def _found_is_aborted() -> Iterator[None]:
    right = Coordinator._issue

    def issue(self: Coordinator, kind: Kind, *others: Any) -> Proposal:
        return right(self, Kind.NEW if kind is Kind.FOUND else kind, *others)

    with patch.object(Coordinator, "_issue", issue):
        yield


@contextmanager
def _lower_ballot() -> Iterator[None]:
    right = AcceptOp.on

    def on(self: AcceptOp, record: AcceptorRecord) -> tuple[AcceptorRecord, WriteVerdict]:
        after, verdict = right(self, replace(record, promised=record.accepted_ballot))
        return replace(after, promised=max(record.promised, after.promised)), verdict

    def look(self: Voter, session: Any, message: Any) -> None:
        record = self.record
        self.record = replace(record, promised=record.accepted_ballot)
        try:
            right_look(self, session, message)
        finally:
            self.record = record

    right_look = Voter._look_at_prepare
    with patch.object(AcceptOp, "on", on), patch.object(Voter, "_look_at_prepare", look):
        yield


@contextmanager
def _abort_alone() -> Iterator[None]:
    def verdict(self: Proposal, voters: VoterSet, suspected: Any) -> Verdict:
        needed = voters.blocking - 1 if self.kind is Kind.NONE else self.quorum
        return tally(voters, needed, self.yes, self.noes, suspected)

    with patch.object(Proposal, "verdict", verdict):
        yield


@contextmanager
def _vote_before_persist() -> Iterator[None]:
    right = Voter._look_at_prepare

    def look(self: Voter, session: Any, message: Any) -> None:
        count = len(self._out)
        right(self, session, message)
        writes = [effect for effect in self._out[count:] if isinstance(getattr(effect, "op", None), AcceptOp)]
        if writes:
            self._vote(session, VoteKind.YES)
            self._out.remove(writes[0])
            self._out.append(writes[0])

    with patch.object(Voter, "_look_at_prepare", look):
        yield


@contextmanager
def _promise_lower() -> Iterator[None]:
    def on(self: PromiseOp, record: AcceptorRecord) -> tuple[AcceptorRecord, WriteVerdict]:
        return record, WriteVerdict.REPEATED if self.ballot <= record.promised else WriteVerdict.DONE

    with patch.object(PromiseOp, "on", on):
        yield


@contextmanager
def _read_what_is_committed() -> Iterator[None]:
    def careless(answers: Any) -> Barrier:
        return Barrier(max(answer.committed.version for answer in answers), doubtful=False)

    with patch.object(reads, "barrier", careless):
        yield


@contextmanager
def _old_life_counted() -> Iterator[None]:
    """Two rules at once: with three voters the coordinator is always among the sources, and either rule alone is enough."""
    right = Rejoin._gathered

    def gathered(self: Rejoin, repository: Any) -> Restore:
        return replace(right(self, repository), accepted=None)

    with (
        patch.object(Rejoin, "_gathered", gathered),
        patch.object(Coordinator, "_fresh", lambda *_: True),
        patch.object(Coordinator, "_hear_of", lambda *_: None),
    ):
        yield


_TABLE = (
    Plant("finish-first", "C3: a change that a claim found is not finished first", "push", _finish_first),
    Plant("forget-on-abort", "V4, V5: an abort forgets the accepted change, and keeps no ballot", "push", _forget_on_abort),
    Plant("quorum-minus-one", "a quorum is one less than a majority", "push", _quorum_minus_one),
    Plant("late-votes", "C4: votes for an attempt are counted after the next one was issued", "push", _late_votes),
    Plant("found-is-aborted", "C3: a found change is aborted at the deadline", "takeover", _found_is_aborted),
    Plant("lower-ballot", "V2: a prepare below the promise is accepted", "push", _lower_ballot),
    Plant("abort-alone", "C5: one vote less than a blocking set makes an abort certain", "push", _abort_alone),
    Plant("vote-before-persist", "V2: the vote is sent before the fsync", "crash", _vote_before_persist),
    Plant("promise-not-kept", "V1: a promise is given and not written", "push", _promise_lower),
    Plant("old-life-counted", "R4: a vote of a lost disk is counted, and was not taken over", "wipe", _old_life_counted),
    Plant("careless-read", "R5: a read looks at committed versions only", "push", _read_what_is_committed),
)

PLANTS = {plant.name: plant for plant in _TABLE}
