"""The catalogue: every rule in bold of replication.md taken out of the real core, and other mistakes that one could make.

Each is a small change of the text of one method (``planting.py``). ``hunt.py`` says how many schedules it takes until a law is
broken; where a mutation names a story, that one breaks first. Where a mutation changes a test cluster instead of the core, the rule is one that ``node/replica.py``, ``reading.py``,
``membership.py``, ``restoring.py`` or the journal keeps, whose part ``tests/scenarios`` plays.
"""
# ruff: noqa: E501 - the text of a method is not wrapped

from node.protocol import reads
from node.protocol.acceptor import AcceptOp, CommitOp, RejoinOp
from node.protocol.batch import Pending
from node.protocol.coordinator import Coordinator
from node.protocol.ids import NodeId
from node.protocol.messages import Status
from node.protocol.promises import Promises
from node.protocol.proposal import Proposal
from node.protocol.reads import Barrier
from node.protocol.rejoin import Rejoin
from node.protocol.standing import Life
from node.protocol.voter import Voter
from tests.scenarios import reader
from tests.scenarios.cluster_node import Node
from tests.scenarios.learner import Learner
from tests.scenarios.membership import Membership
from tests.scenarios.reader import Reader
from tests.simulation.planted.planting import Mutation, Patch, replaced, rewritten
from tests.simulation.weather import Weather

_REFUSES = "if self.ballot < record.promised or self.ballot < record.accepted_ballot:"


def _barrier_ignores_accepted(answers: list[Status]) -> Barrier:
    return Barrier(max(answer.committed.version for answer in answers), doubtful=False)


def _barrier_of_lowest(answers: list[Status]) -> Barrier:
    committed = max(answer.committed.version for answer in answers)
    top = min(answers, key=lambda answer: answer.accepted_ballot)
    if top.accepted_change and top.accepted_base.version == committed:
        return Barrier(committed + 1, doubtful=True)
    return Barrier(committed, doubtful=False)


def _only_remember(self: Membership, peer: NodeId, life: Life | None) -> bool:
    """Answers of a life older than was seen are counted too: else that second net catches what the first one lets through."""
    if life is not None:
        self.counted(peer, life)
    return True


def _both(owner: object, other: object, name: str, function: object) -> tuple[Patch, ...]:
    """A function that another module has imported by name."""
    return (replaced(owner, name, function), replaced(other, name, function))


DISK = (
    Mutation(
        "recheck_dropped",
        "voter",
        "a write re-reads the record and checks its conditions again",
        (
            rewritten(
                AcceptOp,
                "on",
                (_REFUSES, "if self.ballot < record.accepted_ballot:"),
                ("AcceptorRecord(self.ballot, accepted,", "AcceptorRecord(max(self.ballot, record.promised), accepted,"),
            ),
        ),
        bold=True,
        schedule="a prepare passes its check, waits for objects, a newer claim is promised meanwhile, and the late write counts",
    ),
    Mutation(
        "late_write_takes_the_promise_back",
        "voter",
        "promised never decreases",
        (rewritten(AcceptOp, "on", (_REFUSES, "if self.ballot < record.accepted_ballot:")),),
        bold=True,
    ),
    Mutation(
        "fsync_skipped",
        "V1, V2, journal",
        "a result is told after the fsync of its write",
        (
            rewritten(
                Node,
                "_write_now",
                (
                    "if synced_at <= world.now:\n        self._synced(op, certificate, verdict, record, pending, then)\n        return",
                    "if True:\n        if pending is not None:\n"
                    "            self.after(0.1, lambda: self._durable(self.disk.fsync(pending)))\n"
                    "        self._hear(op, certificate, verdict, record, then)\n        return",
                ),
            ),
        ),
    ),
    Mutation(
        "vote_before_persist",
        "V2",
        "the vote is sent after the acceptance is durable",
        (
            rewritten(
                Voter,
                "_look_at_prepare",
                (
                    "session.move(Trigger.ACCEPT)\n        self._out.append(Write(AcceptOp(message.repository, ballot, base, change)))",
                    "self._vote(session, VoteKind.YES)\n        self._out.append(Write(AcceptOp(message.repository, ballot, base, change)))",
                ),
            ),
        ),
    ),
    Mutation(
        "promise_before_persist",
        "V1",
        "the promise is sent after it is durable",
        (
            rewritten(
                Voter,
                "_look_at_claim",
                (
                    "session.move(Trigger.PROMISE)\n        self._out.append(Write(PromiseOp(claim.repository, claim.ballot)))",
                    "self._promise(session, claim.ballot, self.record)\n"
                    "        self._out.append(Write(PromiseOp(claim.repository, claim.ballot)))",
                ),
            ),
        ),
    ),
    Mutation(
        "promise_with_an_old_record",
        "V1",
        "a promise reports what was accepted when it became durable, not when the claim arrived",
        (
            rewritten(
                Voter,
                "_look_at_claim",
                (
                    "session.move(Trigger.PROMISE)",
                    "session.move(Trigger.PROMISE)\n        self._old[claim.ballot] = self.record",
                ),
            ),
            rewritten(
                Voter,
                "_on_promise_written",
                (
                    "self._promise(session, event.op.ballot, event.record)",
                    "self._promise(session, event.op.ballot, self._old.get(event.op.ballot, event.record))",
                ),
            ),
            rewritten(Voter, "__init__", ("self._out: list[Effect] = []", "self._out: list[Effect] = []\n    self._old = {}")),
        ),
    ),
    Mutation(
        "stage_not_fsynced",
        "V2",
        "objects are fsynced before a vote names them",
        (replaced(Node, "sync_stage", lambda self, owner: self.disk.loose.add(owner)),),
    ),
    Mutation(
        "objects_not_checked",
        "V2",
        "a yes says that the objects are here",
        (
            rewritten(
                Voter,
                "_look_at_prepare",
                (
                    "elif change is not None and change.packs and change.position.digest not in self._staged:",
                    "elif False and change is not None:",
                ),
            ),
        ),
    ),
    Mutation(
        "stage_swept_too_early",
        "O4",
        "what an accepted record names is never swept",
        (
            rewritten(
                Voter, "_drop_stages", ("(below is None or ballot < below)", "(below is None or ballot <= below or True)")
            ),
        ),
        profile="late",
        story="stage in use",
    ),
)

VOTER = (
    Mutation(
        "lower_ballot_accepted",
        "V2",
        "a prepare below the promised ballot is refused",
        (
            rewritten(Voter, "_look_at_prepare", ("if ballot < record.promised:", "if ballot < record.accepted_ballot:")),
            rewritten(
                AcceptOp,
                "on",
                (_REFUSES, "if self.ballot < record.accepted_ballot:"),
                ("AcceptorRecord(self.ballot, accepted,", "AcceptorRecord(max(self.ballot, record.promised), accepted,"),
            ),
        ),
    ),
    Mutation(
        "abort_keeps_no_record",
        "V4",
        'the voter accepts "no change" at the abort\'s ballot and keeps that record',
        (
            rewritten(
                AcceptOp,
                "on",
                (
                    "accepted = Accepted(self.ballot, self.base, self.change)",
                    "accepted = Accepted(self.ballot, self.base, self.change) if self.change else None",
                ),
            ),
        ),
        bold=True,
        schedule="an owner that later hears of the change from one voter that missed the abort commits what is told aborted",
    ),
    Mutation(
        "abort_leaves_the_old_record",
        "V4",
        'the voter accepts "no change" at the abort\'s ballot, in place of the change',
        (
            rewritten(
                AcceptOp,
                "on",
                (
                    "accepted = Accepted(self.ballot, self.base, self.change)",
                    "accepted = Accepted(self.ballot, self.base, self.change) if self.change else record.accepted",
                ),
            ),
        ),
        bold=True,
    ),
    Mutation(
        "commit_erases_accepted",
        "V5",
        "an accepted ballot is never erased, only replaced by a higher one",
        (
            rewritten(
                CommitOp,
                "on",
                (
                    "AcceptorRecord(record.promised, record.accepted, position)",
                    "AcceptorRecord(record.promised, None, position)",
                ),
            ),
        ),
    ),
    Mutation(
        "catch_up_touches_promised",
        "R2",
        "catch-up raises committed only, and never touches promised or accepted",
        (
            rewritten(
                CommitOp,
                "on",
                (
                    "AcceptorRecord(record.promised, record.accepted, position)",
                    "AcceptorRecord(record.accepted_ballot, record.accepted, position)",
                ),
            ),
        ),
    ),
    Mutation(
        "commit_of_another_digest",
        "V3",
        "the own accepted change must lead to the committed digest",
        (
            rewritten(
                Voter,
                "_look_at_commit",
                ("own.base == position and own.position == commit.position", "own.base == position"),
            ),
        ),
        bold=True,
    ),
    Mutation(
        "base_proves_another_digest",
        "V2",
        "a base proves the own accepted change only if that leads exactly there",
        (
            rewritten(
                Voter,
                "_grow",
                ("own.position == base", "own.position.version == base.version"),
            ),
        ),
        profile="late",
        story="base of another",
    ),
    Mutation(
        "old_base_accepted",
        "V2",
        "a change is accepted only on what is committed here",
        (
            rewritten(
                AcceptOp, "on", ("if self.base != record.committed:", "if self.base.version > record.committed.version:")
            ),
            rewritten(Voter, "_look_at_prepare", ("elif position.version > base.version:", "elif False:")),
        ),
    ),
    Mutation(
        "applied_before_decided",
        "V6, C4",
        "a change is applied after it is decided",
        (
            rewritten(
                Voter,
                "_on_accept_written",
                (
                    "if op.change is None:",
                    "if op.change is not None:\n"
                    "            self._out.append(Write(CommitOp(self.register.repository, op.change)))\n"
                    "        if op.change is None:",
                ),
            ),
        ),
    ),
)

COORDINATOR = (
    Mutation(
        "quorum_minus_one",
        "C4",
        "a quorum of yes votes",
        (rewritten(Proposal, "verdict", ("else self.quorum", "else max(self.quorum - 1, 1)")),),
    ),
    Mutation(
        "claim_of_less_than_a_majority",
        "C2",
        "a majority promised",
        (
            rewritten(
                Coordinator, "_on_promise", (">= self.register.voters.majority", ">= max(self.register.voters.majority - 1, 1)")
            ),
        ),
    ),
    Mutation(
        "voters_shrunk_by_down_nodes",
        "C8, Words",
        "down nodes never shrink the voter set",
        (
            rewritten(
                Proposal,
                "verdict",
                (
                    "return tally(voters, needed,",
                    "needed = min(needed, len(voters.nodes) - len(suspected))\n    return tally(voters, needed,",
                ),
            ),
            rewritten(Coordinator, "_fail_fast", ("if alive >= self._quorum:", "if alive >= 1:")),
            rewritten(Coordinator, "_work", ("1 + len(self._live_peers) >= self.register.voters.majority", "True")),
            rewritten(
                Coordinator,
                "_on_promise",
                (">= self.register.voters.majority", ">= min(self.register.voters.majority, 1 + len(self._live_peers))"),
            ),
        ),
        bold=True,
    ),
    Mutation(
        "claim_before_own_promise",
        "C2",
        "the own promise is taken by V1, above the own promised round, before the claim is sent",
        (
            rewritten(
                Coordinator,
                "_claim",
                (
                    "self._out.append(Write(PromiseOp(self.register.repository, self._ballot)))",
                    "record = self.record\n"
                    "    own = Promise(self.register.repository, self.register.voters.digest, self._ballot, self._incarnation,\n"
                    "                  record.accepted, record.committed, staged=True)\n"
                    "    self._promises.add(self.me, own)\n"
                    "    self._learn(now) if self.register.voters.majority == 1 else self._send_claim(now)",
                ),
            ),
        ),
        bold=True,
        schedule="a restart uses one ballot for two values",
    ),
    Mutation(
        "round_reused_after_restart",
        "C2",
        "after a restart a node claims a higher round than it ever promised",
        (
            rewritten(
                Coordinator,
                "_claim",
                (
                    "self._seen_round = max(self._seen_round, self.record.promised.round) + 1",
                    "promised = self.record.promised\n"
                    "    mine = promised.node == self.me and self._ballot == promised and promised.round\n"
                    "    self._seen_round = promised.round if mine else max(self._seen_round, promised.round) + 1",
                ),
            ),
            rewritten(Coordinator, "_on_own_promise", ("if event.verdict is not WriteVerdict.DONE:", "if False:")),
        ),
        bold=True,
    ),
    Mutation(
        "sent_before_accepted_here",
        "C4",
        "the next attempt is durably accepted by this node before it is sent",
        (
            rewritten(
                Coordinator,
                "_issue",
                (
                    "self._out.append(Write(AcceptOp(self.register.repository, self._ballot, base, change)))",
                    "self._out.append(Write(AcceptOp(self.register.repository, self._ballot, base, change)))\n"
                    "    self._proposal.yes[self.me] = None\n"
                    "    self._move(Trigger.ACCEPTED_CHANGE if change else Trigger.ACCEPTED_NONE)\n"
                    "    self._send(self._proposal, self._live_peers, now)\n"
                    "    issued = self._proposal\n"
                    "    self._count(now)\n"
                    "    return issued",
                ),
            ),
            rewritten(
                Coordinator,
                "_on_own_acceptance",
                (
                    "if newest(self._incarnations",
                    "if self.state is not State.ISSUING:\n        return\n    if newest(self._incarnations",
                ),
            ),
        ),
    ),
    Mutation(
        "found_change_ignored",
        "C3",
        "finish that change first",
        (
            rewritten(
                Coordinator,
                "_examine",
                ("if top is not None and top.change is not None and top.base == here:", "if False:"),
                (
                    "elif self._settling or self._doubt or self._promises.changes_on(here):",
                    "elif self._settling or self._doubt:",
                ),
            ),
        ),
        bold=True,
    ),
    Mutation(
        "found_change_replaced_by_none",
        "C3",
        "a found change is never replaced by none",
        (
            rewritten(
                Coordinator,
                "_examine",
                ("if top is not None and top.change is not None and top.base == here:", "if False:"),
            ),
        ),
        bold=True,
    ),
    Mutation(
        "found_change_aborted",
        "C3",
        "a found change is never aborted",
        (
            rewritten(Coordinator, "_count", ("proposal.kind is Kind.NEW", "proposal.kind is not Kind.NONE")),
            rewritten(
                Coordinator,
                "_on_time",
                (
                    "proposal.kind is Kind.NEW and now >= proposal.deadline_at",
                    "proposal.kind is not Kind.NONE and now >= proposal.deadline_at",
                ),
            ),
        ),
        bold=True,
        schedule="B re-prepares A's decided change, misses the deadline, aborts it: an acknowledged push is lost",
        profile="takeover",
    ),
    Mutation(
        "own_found_change_aborted",
        "C3, C5",
        "not even if this node proposed it in an earlier round; ownership never lost in between",
        (
            rewritten(
                Coordinator,
                "_on_staged",
                (
                    "self._issue(Kind.FOUND, found.base, found,",
                    "own = self._doubt is not None and self._doubt.change.position == found.position\n"
                    "        self._issue(Kind.NEW if own else Kind.FOUND, found.base, found,",
                ),
            ),
        ),
        bold=True,
        profile="takeover",
    ),
    Mutation(
        "lowest_accepted_finished",
        "C3",
        "the accepted record with the highest ballot is the one to finish",
        (rewritten(Promises, "top", ("return max(accepted", "return min(accepted")),),
    ),
    Mutation(
        "nothing_found_taken_for_proof",
        "C3",
        "where nothing was found nothing is proven: none is proposed, and a blocking set must accept it",
        (
            rewritten(
                Coordinator,
                "_examine",
                (
                    "elif self._settling or self._doubt or self._promises.changes_on(here):",
                    "elif self._settling or self._doubt or self._promises.changes_on(here):\n        self._move(Trigger.CLEAR)\n"
                    "        self._settling = False\n"
                    "        self._out += (Undone(change, 'nothing found') for change in self._promises.changes_on(here))\n"
                    "        doubt, self._doubt = self._doubt, None\n"
                    "        if doubt is not None:\n            self._aborted(doubt, now)\n"
                    "    elif False:",
                ),
            ),
        ),
        bold=True,
        schedule="a change survives on a voter outside the majority",
        profile="takeover",
        story="nothing found",
    ),
    Mutation(
        "late_votes_counted",
        "C4",
        "issuing the next attempt ends the counting of the one before; late votes are dropped",
        (
            rewritten(
                Coordinator, "_give_up", ("self._issue(Kind.NONE,", "self._earlier = proposal\n    self._issue(Kind.NONE,")
            ),
            rewritten(
                Coordinator,
                "_on_vote",
                (
                    "proposal = self._proposal\n",
                    "proposal = self._proposal\n"
                    "    earlier = getattr(self, '_earlier', None)\n"
                    "    late = earlier is not None and earlier.base == self.register.position and vote.ballot == earlier.ballot\n"
                    "    if late and vote.kind is VoteKind.YES:\n"
                    "        earlier.yes[sender] = vote\n"
                    "        if len(earlier.yes) >= earlier.quorum:\n"
                    "            self._proposal, self.state = earlier, State.DECIDING\n"
                    "            signed = earlier.signed_votes(self.me)\n"
                    "            self._out.append(Decide(earlier.change, earlier.ballot, earlier.quorum, signed))\n"
                    "            self._earlier = None\n"
                    "        return\n",
                ),
            ),
        ),
        profile="late",
    ),
    Mutation(
        "votes_of_any_attempt_counted",
        "C4",
        "votes count for their own ballot only",
        (
            rewritten(
                Coordinator,
                "_on_vote",
                (
                    "proposal is None or vote.ballot != proposal.ballot or vote.none",
                    "proposal is None or not vote.ballot.owned_by_same(proposal.ballot) or vote.none",
                ),
            ),
        ),
    ),
    Mutation(
        "lagging_counted_as_yes",
        "C5",
        "lagging and already-committed are neither yes nor no",
        (
            rewritten(
                Coordinator,
                "_on_vote",
                ("elif vote.kind is VoteKind.YES:", "elif vote.kind in (VoteKind.YES, VoteKind.LAGGING):"),
            ),
        ),
    ),
    Mutation(
        "abort_with_one_vote",
        "C5",
        "an abort needs a blocking set",
        (rewritten(Proposal, "verdict", ("voters.blocking if self.kind is Kind.NONE", "1 if self.kind is Kind.NONE")),),
    ),
    Mutation(
        "blocking_set_minus_one",
        "Words, C5",
        "a blocking set meets every majority",
        (rewritten(Proposal, "verdict", ("voters.blocking if", "max(voters.blocking - 1, 1) if")),),
    ),
    Mutation(
        "aborted_at_the_deadline",
        "C5",
        "aborted is told after a blocking set accepted none, never just because the time is over",
        (
            rewritten(
                Coordinator,
                "_give_up",
                (
                    "self._issue(Kind.NONE, proposal.base, None, now + self._timing.prepare_s, now)",
                    "doubt, self._doubt = self._doubt, None\n    if doubt is not None:\n        self._aborted(doubt, now)\n"
                    "    self._issue(Kind.NONE, proposal.base, None, now + self._timing.prepare_s, now)",
                ),
            ),
        ),
    ),
    Mutation(
        "ownership_lost_means_aborted",
        "C6",
        "absent on this node is unknown here, never aborted",
        (
            rewritten(
                Coordinator,
                "_pause",
                (
                    "self._found = None",
                    "self._found = None\n    doubt, self._doubt = self._doubt, None\n    if doubt is not None:\n"
                    "        doubt.fruitless = True\n        self._aborted(doubt, now)",
                ),
            ),
        ),
        bold=True,
    ),
    Mutation(
        "retried_before_certain_abort",
        "C6",
        "only after certain abort may the push be tried again",
        (
            rewritten(
                Coordinator,
                "_pause",
                (
                    "self._found = None",
                    "self._found = None\n    doubt, self._doubt = self._doubt, None\n    if doubt is not None:\n"
                    "        self._queue = [p.again() for p in doubt.pendings if not p.answered] + self._queue",
                ),
            ),
        ),
        bold=True,
    ),
    Mutation(
        "retried_with_the_same_id",
        "C6",
        "a retry is a new change with a new id",
        (rewritten(Pending, "again", ('TxnId(f"{self.submitted.request.txn}.{tries}")', "self.txn")),),
        bold=True,
    ),
    Mutation(
        "resend_is_not_identical",
        "Words",
        "a ballot carries one value for ever; a resend is identical",
        (
            rewritten(
                Coordinator,
                "_resend",
                (
                    "self._send(proposal, missing, now)",
                    "if proposal.change is not None and missing:\n"
                    "            import dataclasses\n"
                    "            request = dataclasses.replace(proposal.change.requests[0], at_ms=int(now * 1000) + 1)\n"
                    "            proposal.change = dataclasses.replace(proposal.change, requests=(request,))\n"
                    "            proposal.position = proposal.change.position\n"
                    "        self._send(proposal, missing, now)",
                ),
            ),
        ),
        bold=True,
    ),
)

READS = (
    Mutation(
        "decision_inferred_from_equal_records",
        "C4",
        "nobody infers a decision from equal accepted records",
        (
            rewritten(
                Reader,
                "_known",
                (
                    "wall = barrier(answers)",
                    "same = {(a.accepted_ballot, a.accepted_base.version, a.accepted_change) for a in answers}\n"
                    "    held = node.voter.record.in_doubt\n"
                    "    if len(same) == 1 and held is not None and answers[0].accepted_ballot == node.voter.record.accepted_ballot:\n"
                    "        from node.protocol.acceptor import CommitOp\n"
                    "        node.write(CommitOp(held.repository, held), None)\n"
                    "    wall = barrier(answers)",
                ),
            ),
        ),
        bold=True,
        schedule="a reader that does serves a change whose abort is being counted",
        profile="readers",
    ),
    Mutation(
        "read_below_the_highest_ballot",
        "R5",
        "the accepted record with the highest ballot says whether to wait",
        _both(reads, reader, "barrier", _barrier_of_lowest),
        bold=True,
        profile="readers",
    ),
    Mutation(
        "accepted_change_not_waited_for",
        "R5",
        "a change accepted on the highest version may be decided: a read waits for it",
        _both(reads, reader, "barrier", _barrier_ignores_accepted),
        profile="readers",
    ),
    Mutation(
        "read_without_majority",
        "R5",
        "a majority is asked",
        (replaced(Reader, "majority", lambda self: 1),),
        profile="readers",
    ),
    Mutation(
        "question_shared_with_a_later_read",
        "R5",
        "the question is sent after the request arrived",
        (
            rewritten(
                Reader,
                "ask",
                (
                    "node, world = self._node, self._node.world\n",
                    "node, world = self._node, self._node.world\n"
                    "    known = getattr(self, '_last', None)\n"
                    "    if known is not None and world.now < known[0] + 2.0:\n"
                    "        then(known[1])\n"
                    "        return\n"
                    "    told = then\n"
                    "    def then(answers):\n"
                    "        self._last = (world.now, answers) if answers else None\n"
                    "        told(answers)\n",
                ),
            ),
        ),
        profile="readers",
    ),
    Mutation(
        "read_before_it_is_applied",
        "R5",
        "the version named is waited for",
        (rewritten(Reader, "_serve", ("if node.applied.position.version < wanted:", "if False:")),),
        profile="readers",
    ),
)

PROOF = (
    Mutation(
        "signatures_not_checked",
        "Signatures",
        "forged messages are refused",
        (replaced(Weather, "believes", lambda self, world, receiver: True),),
    ),
    Mutation(
        "unproved_history_taken",
        "R2",
        "certificates and the chain are verified before history is trusted",
        (
            rewritten(
                Learner,
                "_of",
                (
                    "try:\n",
                    "doubt = peer.voter.record.in_doubt if peer.up else None\n"
                    "    if doubt is not None and doubt.base == here and not node.get(doubt, (peer.name,)):\n"
                    "        node.write(CommitOp(REPOSITORY, doubt), None, lambda: self._learned(here))\n"
                    "        return True\n"
                    "    try:\n",
                ),
            ),
            rewritten(Learner, "_page", ("peer.disk.register.position.version > here.version and", "True and")),
        ),
        story="history unproved",
    ),
)

REJOINING = (
    Mutation(
        "new_journal_votes_at_once",
        "R4",
        "a node with an empty journal rejoins before it answers anything",
        (
            rewritten(
                Membership,
                "_consider",
                ("self.lose(verdict.reason)", "disk.standing = Standing(State.MEMBER)\n            node.begin()"),
            ),
        ),
        profile="amnesia",
    ),
    Mutation(
        "old_copy_votes_at_once",
        "R4",
        "a node that a peer says is older than what it has seen of it rejoins",
        (
            rewritten(Membership, "_met", ("(reason := disk.life.behind(seen))", "(reason := '')")),
            rewritten(Membership, "_consider", ("elif disk.set_back:", "elif False:")),
        ),
        profile="amnesia",
    ),
    Mutation(
        "no_new_incarnation",
        "R4.1",
        "who rejoins takes an incarnation that is newer than any known",
        (rewritten(Membership, "_clear", ("incarnation=effect.incarnation)", "incarnation=disk.life.incarnation)")),),
        profile="amnesia",
    ),
    Mutation(
        "older_incarnations_counted",
        "R4",
        "a set counts only if no member knows a newer incarnation of another than the one that member answered with",
        (
            replaced(Coordinator, "_fresh", lambda self, sender, incarnation, table: True),
            replaced(Coordinator, "_hear_of", lambda self, table: None),
            replaced(reader, "fresh", lambda answers, own=(): dict(answers)),
            replaced(Membership, "counts", _only_remember),
        ),
        bold=True,
        schedule="B votes, is wiped, rejoins empty; A counts B's old vote",
        profile="amnesia",
        story="old vote",
    ),
    Mutation(
        "voters_do_not_tell_incarnations",
        "R4",
        "every promise and vote carries the table of incarnations that its sender knows",
        (
            replaced(Membership, "enrolled", lambda self, node, incarnation: None),
            replaced(Membership, "counts", _only_remember),
        ),
        profile="amnesia",
        story="old vote",
    ),
    Mutation(
        "requests_tell_no_life",
        "R4",
        "every message tells where its sender's journal stands: a coordinator's own vote rides in its requests (found by a seed)",
        (
            rewritten(
                Node,
                "_stamp",
                ("if self.world.amnesia:", "if self.world.amnesia and not isinstance(message, TransportRequest):"),
            ),
        ),
        profile="amnesia",
        story="coordinator set back",
    ),
    Mutation(
        "rejoined_from_one_member",
        "R4.1, R4.2",
        "a majority of the voters, the node itself not counted, tells what it remembers",
        (
            rewritten(
                Rejoin, "_enough", ("return len(self._answered) >= self._members.majority", "return len(self._answered) >= 1")
            ),
        ),
        profile="amnesia",
    ),
    Mutation(
        "rejoined_from_a_majority_with_itself",
        "R4.1",
        "itself not counted",
        (
            rewritten(
                Rejoin,
                "_enough",
                (
                    "return len(self._answered) >= self._members.majority",
                    "return len(self._answered) + 1 >= self._members.majority",
                ),
            ),
        ),
        profile="amnesia",
    ),
    Mutation(
        "rejoined_without_promises",
        "R4.3",
        "promised becomes the highest reported",
        (rewritten(RejoinOp, "on", ("promised = max(record.promised, self.promised,", "promised = max(record.promised,")),),
        profile="amnesia",
        story="promise taken over",
    ),
    Mutation(
        "rejoined_without_accepted",
        "R4.3",
        "accepted becomes the reported record with the highest ballot",
        (
            rewritten(
                RejoinOp,
                "on",
                ("if self.accepted is not None and self.accepted.ballot >= record.accepted_ballot:", "if False:"),
            ),
        ),
        profile="amnesia",
        story="accepted taken over",
    ),
    Mutation(
        "rejoined_with_the_lowest_accepted",
        "R4.3",
        "the highest ballot",
        (
            rewritten(
                Rejoin,
                "_gathered",
                ("accepted = max(\n        (record.accepted", "accepted = min(\n        (record.accepted"),
            ),
        ),
        profile="amnesia",
        story="highest taken over",
    ),
    Mutation(
        "rejoined_without_history",
        "R4.3",
        "the highest committed version is caught up to",
        (rewritten(Membership, "_restore", ("self._learn(wanted) or self._take_over(wanted)", "self._learn(wanted) and ''")),),
        profile="amnesia",
    ),
    Mutation(
        "interrupted_rejoining_forgotten",
        "R4",
        "the mark stands through any crash",
        (
            rewritten(
                Membership,
                "lose",
                (
                    "disk.standing = replace(disk.standing, state=State.REJOINING, reason=reason)",
                    "disk.standing = replace(disk.standing, state=State.MEMBER)",
                ),
            ),
        ),
        profile="amnesia",
    ),
    Mutation(
        "records_told_before_the_incarnation_is_known",
        "R4.1",
        "members store the new incarnation before they answer",
        (
            rewritten(
                Membership,
                "enrol",
                (
                    "known = disk.enrolled[sender] = (message.incarnation, message.life)\n        self.enrolled(sender, message.incarnation)",
                    "known = (message.incarnation, message.life)",
                ),
            ),
            replaced(Membership, "counts", _only_remember),
        ),
        profile="amnesia",
    ),
)

LIVENESS = (
    Mutation(
        "found_change_not_sent_again",
        "C3",
        "a found change is sent again until a quorum votes yes, ownership is lost, or a higher version is learned",
        (
            rewritten(
                Coordinator,
                "_resend",
                ("if now >= proposal.resend_at:", "if now >= proposal.resend_at and proposal.kind is Kind.NEW:"),
            ),
            rewritten(
                Coordinator,
                "_wake",
                ("else self._proposal.resend_at)", "else now + 5.0)"),
            ),
        ),
        story="found and lost",
    ),
    Mutation(
        "doubt_not_settled",
        "R1",
        "a voter in doubt for long asks, and claims",
        (rewritten(Voter, "_on_time", ("self._out.append(Settle())", "pass")),),
    ),
    Mutation(
        "refused_commit_tried_at_once",
        "V3",
        "a journal that refuses is not asked again at once (found by a seed: it spun)",
        (
            rewritten(
                Voter,
                "_on_commit_written",
                ("if event.verdict is WriteVerdict.REFUSED:", "if False:"),
            ),
        ),
    ),
    Mutation(
        "old_contention_slows_new_requests",
        "C6",
        "an earlier contention is over when a new request finds an idle coordinator (found by a seed)",
        (
            rewritten(Coordinator, "_on_submitted", ("self._pauses = 0", "pass")),
            rewritten(Coordinator, "_blocked", ("self._pauses = 0", "pass")),
            rewritten(Coordinator, "_decided", ("self._pauses = 0", "pass")),
        ),
    ),
    Mutation(
        "refusal_ends_a_counted_decision",
        "C4",
        "a decision, once counted, is made (found by a seed)",
        (rewritten(Coordinator, "_on_refused", ("(*_BETWEEN_CLAIMS, State.DECIDING)", "_BETWEEN_CLAIMS")),),
        story="refused while deciding",
    ),
    Mutation(
        "certificate_needed_for_every_change",
        "R2",
        "a position that a verified message names proves the chain below it: a certificate may die with its coordinator",
        (rewritten(Learner, "to", ("if told:", "if False:")),),
        story="proved by a base",
    ),
)

CATALOGUE: tuple[Mutation, ...] = (*DISK, *VOTER, *COORDINATOR, *READS, *REJOINING, *PROOF, *LIVENESS)
