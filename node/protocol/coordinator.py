"""The coordinator: how this node gets changes of one repository decided (C1–C8, and the settling part of R1).

One change in flight. The machine owns a round or it does not (C2); owning, it proposes: a new change, a change that a claim
found, or "no change" to abort or to settle. ``coordinator_states.py`` has the whole table; only ``_move`` writes ``state``.

Two things live longer than a state: ``Doubt``, an own change whose outcome is not certain (its clients are told ``unknown``
in time, and it is settled in the background), and ``Closing``, a decided change whose answer waits a moment to name all
voters. Ownership lives here only: after a restart a node owns nothing and claims a higher round.

R4: whatever it hears of newer incarnations, from the own journal, a promise or a vote, it keeps in one table. Votes and
promises of older ones are not counted, and those counted already are dropped as long as nothing has come of them.
"""

from collections.abc import Iterable

from node.protocol.acceptor import Accepted, AcceptOp, AcceptorRecord, CommitOp, PromiseOp, WriteVerdict
from node.protocol.batch import Pending, form
from node.protocol.certificate import Certificate
from node.protocol.change import Change
from node.protocol.coordinator_states import TRANSITIONS, State, Trigger
from node.protocol.effects import Alarm, Answer, CatchUp, Decide, Effect, Note, Send, StageObjects, Undone, Wake, Write
from node.protocol.events import (
    Committed,
    Enrolled,
    Event,
    ObjectsStaged,
    Received,
    SetAside,
    SettleNow,
    Submitted,
    Suspected,
    Written,
)
from node.protocol.ids import Ballot, NodeId, Position
from node.protocol.incarnations import FIRST, Incarnations, merged, newest
from node.protocol.messages import Abort, Claim, Commit, Prepare, Promise, Refused, TransportRequest, Vote, VoteKind
from node.protocol.outcome import OutcomeKind
from node.protocol.promises import Promises
from node.protocol.proposal import Closing, Doubt, Kind, Proposal, outcome, refusal, shortfall
from node.protocol.quorum import Verdict, VoterSet
from node.protocol.register import Register, preferred
from node.protocol.timing import Timing

QUEUE_MAX = 1024
"""Requests that may wait for one repository; the next ones are refused at once."""

_BETWEEN_CLAIMS = (State.IDLE, State.WAITING)


class Coordinator:
    """One repository's coordinator on this node. ``spread`` in [0, 1) sets its pauses apart from other nodes'."""

    def __init__(
        self,
        me: NodeId,
        record: AcceptorRecord,
        register: Register,
        timing: Timing,
        *,
        quorum_rule: str = "majority",
        spread: float = 0.0,
        stopped: str = "",
        incarnation: int = FIRST,
        incarnations: Incarnations = (),
    ) -> None:
        """``incarnations`` are those of other nodes that are durable here."""
        self.me = me
        self.state = State.STOPPED if stopped else State.IDLE
        self.record = record
        self.register = register
        self._timing = timing
        self._quorum_rule = quorum_rule
        self._spread = spread
        self._incarnation = incarnation
        self._incarnations = incarnations
        """The newest of each node that was ever heard of, here or in an answer."""
        self._suspected: frozenset[NodeId] = frozenset()
        self._queue: list[Pending] = []
        self._settling = False
        self._ballot = record.promised
        """The own round's highest attempt so far, or whatever was promised last."""
        self._seen_round = record.promised.round
        self._promises = Promises()
        self._claim_deadline_at = 0.0
        self._claim_resend_at = 0.0
        self._resume_at = 0.0
        self._pauses = 0
        self._learn_to = 0
        self._found: Accepted | None = None
        self._proposal: Proposal | None = None
        self._doubt: Doubt | None = None
        self._closings: list[Closing] = []
        self._out: list[Effect] = []
        self._others: tuple[VoterSet, list[NodeId]] = (register.voters, [n for n in register.voters.nodes if n != me])

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event; return what to do, in order."""
        self._out = []
        match event:
            case Submitted():
                self._on_submitted(event)
            case Received(sender, message):
                self._on_received(sender, message, now)
            case Written():
                self._on_written(event, now)
            case Committed():
                self._on_committed(event, now)
            case ObjectsStaged():
                self._on_staged(event, now)
            case SettleNow():
                here = event.version is not None and event.version == self.register.position.version
                self._settling = self._settling or here or self.record.in_doubt is not None
            case Enrolled(node, incarnation):
                self._hear_of(((node, incarnation),))
            case SetAside(reason):
                self._set_aside(reason)
            case Suspected():
                self._suspected = event.nodes
                self._fail_fast()
                self._count(now)
            case _:
                pass
        if self.busy:
            self._on_time(now)
            self._work(now)
            self._wake(now)
        out, self._out = self._out, []
        return out

    @property
    def busy(self) -> bool:
        """Whether anything is wanted, doubted or under way: then it must not be forgotten."""
        return bool(self._queue or self._doubt or self._closings or self._settling) or self.state not in (
            State.IDLE,
            State.OWNING,
            State.STOPPED,
        )

    def __repr__(self) -> str:
        return f"<Coordinator {self.register.repository} {self.state.name} {self._proposal or self._ballot}>"

    # ------------------------------------------------------------ work

    @property
    def _quorum(self) -> int:
        return self.register.voters.quorum(self._quorum_rule)

    @property
    def _peers(self) -> list[NodeId]:
        voters = self.register.voters
        if self._others[0] is not voters:
            self._others = (voters, [node for node in voters.nodes if node != self.me])
        return self._others[1]

    @property
    def _live_peers(self) -> list[NodeId]:
        return [node for node in self._peers if node not in self._suspected]

    def _on_submitted(self, event: Submitted) -> None:
        pending = Pending.of(event)
        if self.state is State.STOPPED:
            self._refuse(pending, "this replica is set aside; another node can take the write")
        elif self.me not in self.register.voters.nodes:
            self._refuse(pending, "this node is no voter of the repository; a voter can take the write")
        elif len(self._queue) >= QUEUE_MAX:
            self._refuse(pending, f"{QUEUE_MAX} requests wait for this repository already")
        else:
            if self.state in (State.IDLE, State.OWNING) and not (self._queue or self._doubt):
                self._pauses = 0  # an earlier contention is over: a new request must not pay for it
            self._queue.append(pending)
        self._fail_fast()

    def _fail_fast(self) -> None:
        """C8: what cannot reach its quorum is refused before anything is sent; the quorum is never reduced."""
        alive = 1 + len(self._live_peers)
        if alive >= self._quorum:
            return
        gone = ", ".join(f"{node} unreachable" for node in self._peers if node in self._suspected)
        queue, self._queue = self._queue, []
        for pending in queue:
            self._refuse(pending, f"quorum not reachable ({alive}/{self._quorum}): {gone}; nothing was sent")

    def _work(self, now: float) -> None:
        """Claim when something is wanted and nothing is owned; propose when something waits and the round is owned."""
        if self.state is State.OWNING and self._queue:
            self._issue_next(now)
        if self.state is State.OWNING and self._settling:
            self._issue(Kind.NONE, self.register.position, None, now + self._timing.prepare_s, now)
        if self.state not in _BETWEEN_CLAIMS:
            return
        wanted = bool(self._queue or self._settling or self._doubt)
        if self.state is State.WAITING and now < self._resume_at:
            return
        if not wanted:
            if self.state is State.WAITING:
                self._move(Trigger.REST)
        elif 1 + len(self._live_peers) >= self.register.voters.majority:
            self._claim(now)
        else:
            self._resume_at = now + self._timing.resend_s

    def _claim(self, now: float) -> None:
        """C2: the own promise, by V1, above the own promised round, before the claim is sent."""
        if self.state is State.IDLE or self.state is State.WAITING:
            self._move(Trigger.WORK)
        self._seen_round = max(self._seen_round, self.record.promised.round) + 1
        self._ballot = Ballot(self._seen_round, self.me, 0)
        self._promises = Promises()
        self._found = None
        self._claim_deadline_at = now + self._timing.prepare_s
        self._out.append(Write(PromiseOp(self.register.repository, self._ballot)))

    def _issue_next(self, now: float) -> None:
        """C1: form the next change out of what waits; refuse what cannot be in it."""
        least_s = self._timing.prepare_s * 0.2
        fresh = [pending for pending in self._queue if pending.submitted.deadline_at - now >= least_s]
        for pending in self._queue:
            if pending.submitted.deadline_at - now < least_s:
                self._refuse(pending, "waited too long for other changes of this repository; nothing was sent")
        batch = form(self.register, fresh)
        self._queue = batch.left
        for pending, reason in batch.rejected:
            self._refuse(pending, reason, OutcomeKind.REJECTED)
        if batch.change is not None:
            deadline_at = min(pending.submitted.deadline_at for pending in batch.taken)
            proposal = self._issue(Kind.NEW, batch.change.base, batch.change, deadline_at, now)
            self._doubt = Doubt(batch.change, batch.taken, proposal)

    def _issue(self, kind: Kind, base: Position, change: Change | None, deadline_at: float, now: float) -> Proposal:
        """C4: from here on the attempt before is not counted any more; late votes for it are dropped."""
        self._ballot = self._ballot.next_attempt()
        self._move(Trigger.ISSUE)
        position = change.position if change else base
        resend_at = now + self._timing.resend_s
        self._proposal = Proposal(kind, self._ballot, base, change, self._quorum, deadline_at, resend_at, position)
        self._out.append(Write(AcceptOp(self.register.repository, self._ballot, base, change)))
        return self._proposal

    # ------------------------------------------------------------ claims

    def _on_promise(self, sender: NodeId, promise: Promise, now: float) -> None:
        if self.state is not State.CLAIMING or promise.ballot != self._ballot:
            self._note(f"promise of {sender} at {promise.ballot} is late")
        elif promise.voters != self.register.voters.digest:
            self._out.append(Alarm(f"{sender} promises for another voter set"))
        elif self._fresh(sender, promise.incarnation, promise.incarnations):
            self._promises.add(sender, promise)
            if len(self._promises) >= self.register.voters.majority:
                self._learn(now)

    def _learn(self, now: float) -> None:
        """C3: first catch up to the highest committed version that was promised."""
        highest, here = self._promises.highest(), self.register.position
        if clash := self._promises.clash(here):
            self._stop(f"a voter stands at {clash}, this node at {here}")
        elif highest.version > here.version:
            self._learn_to = highest.version
            self._move(Trigger.BEHIND)
            self._out.append(CatchUp(highest.version, self._promises.at_least(highest.version), told=highest))
        else:
            self._examine(now)

    def _examine(self, now: float) -> None:
        """C3: finish what the highest accepted record carries, or make sure that nothing is left of a doubt, or own."""
        here = self.register.position
        top = self._promises.top()
        if top is not None and top.change is not None and top.base == here:
            self._fetch(top)
        elif self._settling or self._doubt or self._promises.changes_on(here):
            self._issue(Kind.NONE, here, None, now + self._timing.prepare_s, now)
        else:
            self._move(Trigger.CLEAR)

    def _fetch(self, found: Accepted) -> None:
        assert found.change is not None
        self._found = found
        holders, packs = self._promises.objects_of(found.change.position.digest)
        self._move(Trigger.FOUND)
        self._out.append(StageObjects(found.change, tuple(node for node in holders if node != self.me), packs))

    def _on_staged(self, event: ObjectsStaged, now: float) -> None:
        found = self._found.change if self._found else None
        if self.state is not State.FETCHING or found is None or found.position.digest != event.digest:
            return
        if event.problem:
            # Nobody in reach has the objects any more: propose nothing, claim again (C3).
            self._note(f"objects of the found change: {event.problem}")
            self._pause(now)
        else:
            self._issue(Kind.FOUND, found.base, found, now + self._timing.prepare_s, now)

    # ------------------------------------------------------------ votes

    def _on_received(self, sender: NodeId, message: object, now: float) -> None:
        if sender not in self._peers:
            self._note(f"{sender} is no other voter of this repository")
            return
        match message:
            case Promise():
                self._on_promise(sender, message, now)
            case Vote():
                self._on_vote(sender, message, now)
            case Refused():
                self._on_refused(sender, message, now)
            case _:
                pass

    def _fresh(self, sender: NodeId, incarnation: int, table: Incarnations) -> bool:
        """R4: whether an answer of ``sender`` may be counted at all; what it knows of others is heard first."""
        self._hear_of(merged(table, ((sender, incarnation),)))
        known = newest(self._incarnations, sender)
        if incarnation < known:
            self._note(f"{sender} answers in incarnation {incarnation}, {known} is known")
        return incarnation >= known

    def _hear_of(self, table: Incarnations) -> None:
        """R4: a newer incarnation of a node is known now; what older lives answered is not counted any more."""
        known = merged(self._incarnations, table)
        if known == self._incarnations:
            return
        self._incarnations = known
        if self.state is State.CLAIMING:
            self._promises.drop_older(known)
        if self._proposal is not None and self.state in (State.PREPARING, State.ABORTING):
            self._proposal.drop_older(self.me, self._incarnation, known)

    def _on_vote(self, sender: NodeId, vote: Vote, now: float) -> None:
        for closing in self._closings:
            newer = vote.incarnation >= newest(self._incarnations, sender)
            if vote.ballot == closing.proposal.ballot and vote.kind is VoteKind.YES and newer:
                closing.proposal.yes[sender] = vote
        proposal = self._proposal
        if proposal is None or vote.ballot != proposal.ballot or vote.none != (proposal.change is None):
            self._note(f"vote of {sender} at {vote.ballot} is late")
        elif vote.voters != self.register.voters.digest:
            self._out.append(Alarm(f"{sender} votes for another voter set"))
        elif not self._fresh(sender, vote.incarnation, vote.incarnations):
            pass
        elif vote.kind is VoteKind.YES:
            if vote.position != proposal.position or vote.quorum != proposal.quorum:
                self._out.append(Alarm(f"{sender} voted for something else at {vote.ballot}"))
                return
            proposal.yes[sender] = vote
            self._count(now)
        elif vote.kind is VoteKind.NO:
            proposal.noes[sender] = vote.reason
            self._count(now)
        else:
            proposal.others[sender] = vote.reason or vote.kind.value
            if vote.committed.version > self.register.position.version:
                self._out.append(CatchUp(vote.committed.version, (sender,), told=vote.committed))

    def _count(self, now: float) -> None:
        """C4, C5: is it decided, aborted, or hopeless?"""
        proposal = self._proposal
        if proposal is None or self.state not in (State.PREPARING, State.ABORTING):
            return
        verdict = proposal.verdict(self.register.voters, self._suspected)
        if verdict is Verdict.WON and self.state is State.PREPARING:
            assert proposal.change is not None
            self._move(Trigger.QUORUM)
            self._out.append(Decide(proposal.change, proposal.ballot, proposal.quorum, proposal.signed_votes(self.me)))
        elif verdict is Verdict.WON:
            self._blocked(now)
        elif verdict is Verdict.LOST and proposal.kind is Kind.NEW:
            self._give_up(proposal, now)

    def _give_up(self, proposal: Proposal, now: float) -> None:
        """C5: propose "no change" at the next attempt, of an own change only, first proposed in this very round."""
        if self._doubt is not None:
            self._doubt.reason = shortfall(proposal, self.register.voters, self._suspected)
            self._doubt.fruitless = True
        self._issue(Kind.NONE, proposal.base, None, now + self._timing.prepare_s, now)

    def _blocked(self, now: float) -> None:
        """A blocking set accepted "no change": every change on this base at lower ballots is aborted, certain."""
        self._move(Trigger.BLOCKED)
        self._proposal = None
        self._settling = False
        self._pauses = 0
        doubt, self._doubt = self._doubt, None
        for change in self._promises.changes_on(self.register.position):
            self._out.append(
                Undone(change, f"settled by {self.me}: no change was accepted by a blocking set at {self._ballot}")
            )
        if doubt is not None:
            self._aborted(doubt, now)

    def _on_refused(self, sender: NodeId, refused: Refused, now: float) -> None:
        if refused.ballot != self._ballot or self.state in (*_BETWEEN_CLAIMS, State.DECIDING):
            # DECIDING: the quorum is counted (C4). To give up now would leave the commit unsent.
            self._note(f"refusal of {sender} at {refused.ballot} is late")
        elif refused.promised > self._ballot and not refused.promised.owned_by_same(self._ballot):
            self._seen_round = max(self._seen_round, refused.promised.round)
            self._pause(now)
        elif self._proposal is not None and refused.reason:
            self._proposal.noes[sender] = refused.reason
            self._count(now)
        elif refused.promised.owned_by_same(self._ballot):
            self._note(f"refusal of {sender} names an own attempt")
        else:
            self._note(f"{sender} promises nothing: {refused.reason}")

    # ------------------------------------------------------------ what became durable

    def _on_written(self, event: Written, now: float) -> None:
        older = event.record.promised < self.record.promised or event.record.committed.version < self.record.committed.version
        if not older:
            self.record = event.record
        if event.verdict is WriteVerdict.DIVERGENT:
            self._stop(f"{event.op.repository}: one ballot or one version has two values")
        elif isinstance(event.op, PromiseOp) and event.op.ballot == self._ballot and self.state is State.CLAIMING:
            self._on_own_promise(event, now)
        elif isinstance(event.op, AcceptOp) and self._proposal is not None and event.op.ballot == self._proposal.ballot:
            self._on_own_acceptance(event, self._proposal, now)
        elif isinstance(event.op, CommitOp) and event.verdict is WriteVerdict.REFUSED and self.state is State.DECIDING:
            self._pause(now)  # the journal failed under a decision: it stays in doubt until a journal can hold it
        elif isinstance(event.op, PromiseOp | AcceptOp) and event.verdict is WriteVerdict.DONE:
            self._on_foreign(event.op.ballot, now)

    def _on_foreign(self, ballot: Ballot, now: float) -> None:
        """The own voter promised a higher round to somebody else: to go on would only collect refusals (C6)."""
        owning = self.state in (State.OWNING, State.PREPARING, State.ABORTING, State.CLAIMING, State.LEARNING, State.FETCHING)
        if ballot > self._ballot and not ballot.owned_by_same(self._ballot):
            self._seen_round = max(self._seen_round, ballot.round)
            if owning:
                self._pause(now)

    def _on_own_promise(self, event: Written, now: float) -> None:
        if event.verdict is not WriteVerdict.DONE:
            self._pause(now)
            return
        voters, record = self.register.voters, event.record
        own = Promise(
            self.register.repository,
            voters.digest,
            self._ballot,
            self._incarnation,
            record.accepted,
            record.committed,
            staged=True,
        )
        if newest(self._incarnations, self.me) > self._incarnation:
            self._pause(now)  # somebody took a newer incarnation of this very node: nothing said here counts any more
            return
        self._promises.add(self.me, own)
        if voters.majority == 1:
            self._learn(now)
            return
        self._send_claim(now)

    def _send_claim(self, now: float) -> None:
        """To whoever has not promised; a repeated claim gets the same promise (V1)."""
        self._claim_resend_at = now + self._timing.resend_s
        claim = Claim(self.register.repository, self.register.voters.digest, self._ballot, self._timing.prepare_s)
        self._out += (Send(peer, claim) for peer in self._live_peers if peer not in self._promises)

    def _on_own_acceptance(self, event: Written, proposal: Proposal, now: float) -> None:
        if event.verdict is WriteVerdict.MOVED:
            return  # the commit that moved it is on its way to ``_on_committed``
        if event.verdict is WriteVerdict.REFUSED:
            # Refused for a higher promise: never sent, never accepted, not even here; the requests may simply wait for the
            # next change. Refused by a failing disk: it may yet be found there, so the doubt stays.
            certain = event.record.promised > proposal.ballot
            if certain and proposal.kind is Kind.NEW and self._doubt is not None:
                self._queue = [pending.again() for pending in self._doubt.pendings] + self._queue
                self._doubt = None
            self._pause(now)
            return
        if newest(self._incarnations, self.me) <= self._incarnation:
            proposal.yes[self.me] = None
        self._move(Trigger.ACCEPTED_NONE if proposal.change is None else Trigger.ACCEPTED_CHANGE)
        self._send(proposal, self._live_peers, now)
        self._count(now)

    def _send(self, proposal: Proposal, peers: Iterable[NodeId], now: float) -> None:
        repository, voters = self.register.repository, self.register.voters.digest
        left_s = max(proposal.deadline_at - now, self._timing.resend_s)
        message: TransportRequest
        if proposal.change is None:
            message = Abort(repository, voters, proposal.ballot, proposal.base, proposal.quorum, left_s)
        else:
            message = Prepare(repository, voters, proposal.ballot, proposal.change, proposal.quorum, left_s)
        proposal.sent = True
        proposal.resend_at = now + self._timing.resend_s
        self._out += (Send(peer, message) for peer in peers)

    def _on_committed(self, event: Committed, now: float) -> None:
        self.register = event.register
        if event.record.promised >= self.record.promised:
            self.record = event.record
        proposal = self._proposal
        mine = proposal is not None and proposal.position == event.change.position
        if self.record.in_doubt is None:
            self._settling = False
        if proposal is not None and proposal.base.version < event.register.position.version:
            self._proposal = None
            if mine and self.state is State.DECIDING:
                self._decided(proposal, event.certificate, now)
            else:
                self._pause(now)
        elif self.state is State.OWNING:
            self._pause(now)  # somebody else got a change decided: they own a higher round
        if self._doubt is not None:
            self._resolve(self._doubt, event, now)
        if self.state is State.LEARNING and event.register.position.version >= self._learn_to:
            self._examine(now)
        elif self.state is State.FETCHING and self._found is not None and self._found.base != event.register.position:
            self._pause(now)

    def _decided(self, proposal: Proposal, certificate: Certificate | None, now: float) -> None:
        """C4, after the commit is durable: tell the peers, then whoever waits; nobody waits for the peers to hear it."""
        self._move(Trigger.DECIDED)
        self._pauses = 0
        register = self.register
        if certificate is not None:
            commit = Commit(register.repository, register.voters.digest, proposal.position, certificate)
            self._out += (Send(peer, commit) for peer in self._live_peers)
        doubt = self._doubt
        if doubt is not None and doubt.change.position == proposal.position:
            self._doubt = None
            self._closings.append(Closing(proposal, doubt.pendings, certificate, now + self._timing.grace_s))

    def _resolve(self, doubt: Doubt, event: Committed, now: float) -> None:
        """C6: ``history[base.version + 1]`` tells."""
        if event.change.base.version != doubt.change.base.version:
            return
        self._doubt = None
        if event.change.position == doubt.change.position:
            self._closings.append(Closing(doubt.proposal, doubt.pendings, event.certificate, now))
        else:
            doubt.reason = doubt.reason or f"another change took its place at version {event.register.position.version}"
            self._aborted(doubt, now)

    def _aborted(self, doubt: Doubt, now: float) -> None:
        """Certain. What may still succeed is tried again as a new change with a new id, within its deadline (C1, C6)."""
        again: list[Pending] = []
        several = len(doubt.pendings) > 1
        refused_by_vote = bool(doubt.proposal.noes)
        for pending in doubt.pendings:
            hopeful = not doubt.fruitless or (refused_by_vote and several)
            if hopeful and not pending.answered and pending.submitted.deadline_at > now:
                again.append(pending.again(alone=refused_by_vote))
            else:
                self._tell(OutcomeKind.ABORTED, pending, doubt.proposal, doubt.reason)
        self._queue = again + self._queue
        self._fail_fast()

    # ------------------------------------------------------------ time

    def _on_time(self, now: float) -> None:
        self._close(now)
        self._expire(now)
        if self.state in (State.CLAIMING, State.LEARNING):
            grace_s = self._timing.prepare_s if self.state is State.LEARNING else 0.0
            if now >= self._claim_deadline_at + grace_s:
                self._pause(now)
        if self.state is State.CLAIMING and self.me in self._promises and now >= self._claim_resend_at:
            self._send_claim(now)
        proposal = self._proposal
        if proposal is None or self.state not in (State.PREPARING, State.ABORTING):
            return
        if proposal.kind is Kind.NEW and now >= proposal.deadline_at:
            self._give_up(proposal, now)
        else:
            self._resend(proposal, now)

    def _resend(self, proposal: Proposal, now: float) -> None:
        """Identical, to whoever has not voted. A found change and an abort are never given up while the round is owned, so
        who said no to one (objects out of reach, for example) is asked again; an own change's no is final."""
        if now >= proposal.resend_at:
            if now >= proposal.deadline_at:
                proposal.deadline_at = now + self._timing.prepare_s
            if proposal.kind is not Kind.NEW:
                proposal.noes.clear()
            missing = [peer for peer in self._live_peers if peer not in proposal.yes and peer not in proposal.noes]
            self._send(proposal, missing, now)

    def _close(self, now: float) -> None:
        """Answer what is decided: as soon as every live voter has said yes, or the moment of grace is over."""
        if not self._closings:
            return
        still: list[Closing] = []
        for closing in self._closings:
            awaited = set(self._live_peers) - set(closing.proposal.yes) - set(closing.proposal.noes)
            if awaited and now < closing.answer_at:
                still.append(closing)
                continue
            for pending in closing.pendings:
                self._tell(OutcomeKind.COMMITTED, pending, closing.proposal, "", closing.certificate)
        self._closings = still

    def _expire(self, now: float) -> None:
        """Nobody waits longer than the deadline: what was never sent is refused, what may yet appear is ``unknown``."""
        if self._queue:
            late = [pending for pending in self._queue if now >= pending.submitted.deadline_at]
            self._queue = [pending for pending in self._queue if now < pending.submitted.deadline_at]
            for pending in late:
                self._refuse(pending, self._why_waiting())
        doubt = self._doubt
        if doubt is None:
            return
        for pending in doubt.pendings:
            if not pending.answered and now >= pending.submitted.deadline_at + self._timing.abort_s:
                reason = doubt.reason or shortfall(doubt.proposal, self.register.voters, self._suspected)
                self._tell(OutcomeKind.UNKNOWN, pending, doubt.proposal, reason)
                pending.answered = True

    def _why_waiting(self) -> str:
        promised, needed = len(self._promises), self.register.voters.majority
        if self.state is State.CLAIMING:
            return f"no majority promised this node the repository ({promised}/{needed}); nothing was sent"
        return "waited too long for other changes of this repository, or for another node's turn; nothing was sent"

    def _wake(self, now: float) -> None:
        wishes = [closing.answer_at for closing in self._closings]
        wishes += [pending.submitted.deadline_at for pending in self._queue]
        if self._doubt is not None:
            waiting = [p.submitted.deadline_at for p in self._doubt.pendings if not p.answered]
            wishes += [deadline_at + self._timing.abort_s for deadline_at in waiting]
        if self._proposal is not None and self.state in (State.PREPARING, State.ABORTING):
            new = self._proposal.kind is Kind.NEW
            wishes.append(min(self._proposal.deadline_at, self._proposal.resend_at) if new else self._proposal.resend_at)
        if self.state is State.CLAIMING:
            sent = self.me in self._promises
            wishes.append(min(self._claim_deadline_at, self._claim_resend_at) if sent else self._claim_deadline_at)
        if self.state is State.LEARNING:
            wishes.append(self._claim_deadline_at + self._timing.prepare_s)
        if self.state is State.WAITING:
            wishes.append(self._resume_at)
        if wishes:
            self._out.append(Wake(max(now, min(wishes))))

    def _pause(self, now: float) -> None:
        """C6, C7: ownership is lost, or was not won. Pause, longer each time, the preferred voter a little shorter."""
        self._move(Trigger.LOST)
        self._proposal = None
        self._found = None
        self._promises = Promises()
        longest_s = min(self._timing.backoff_s * 2**self._pauses, self._timing.backoff_max_s)
        alive = [self.me, *self._live_peers]
        first = preferred(self.register.repository, self.register.voters, alive) == self.me
        draw = (self._spread + self._pauses * 0.618) % 1.0
        self._pauses = min(self._pauses + 1, 10)
        self._resume_at = now + longest_s * (0.25 + 0.5 * draw if first else 0.5 + draw)

    # ------------------------------------------------------------ helpers

    def _tell(
        self, kind: OutcomeKind, pending: Pending, proposal: Proposal, reason: str, certificate: Certificate | None = None
    ) -> None:
        told = outcome(kind, pending, proposal, self.register.voters, self._suspected, reason=reason, certificate=certificate)
        self._out.append(Answer(pending.submitted.request.txn, told))

    def _refuse(self, pending: Pending, reason: str, kind: OutcomeKind = OutcomeKind.ABORTED) -> None:
        told = refusal(kind, pending, reason, self.register.voters, self._quorum)
        self._out.append(Answer(pending.submitted.request.txn, told))

    def _stop(self, reason: str) -> None:
        self._out.append(Alarm(reason, stop=True))
        self._set_aside(reason)

    def _set_aside(self, reason: str) -> None:
        self._move(Trigger.ALARM)
        self._proposal = None
        queue, self._queue = self._queue, []
        for pending in queue:
            self._refuse(pending, f"this replica is set aside: {reason}")

    def _move(self, trigger: Trigger) -> None:
        self.state = TRANSITIONS[self.state][trigger]

    def _note(self, reason: str) -> None:
        self._out.append(Note(reason))
