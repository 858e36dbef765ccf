"""How a node that lost its journal, or may have, becomes a member again (R4). ``rejoin_states.py`` has the whole table.

The mark is durable before this machine exists, and while it stands the node answers nothing for any repository: it has no
``Voter`` and no ``Coordinator``. So what this machine learns is what its node had said, or more.

The contract with who drives it (``node/rejoining.py``, or a simulated node):

    events     Begin            once, and after it Tick whenever a Wake is due
               Answered         a verified Enrolment or AcceptorPage of a member; late and double ones do no harm
               Kept             the number asked for by Keep is durable, and ``life`` is a random name for this attempt
               Restored         what became of a Restore: ``problem`` is empty when the record is durable here
               Cleared          what became of a Clear
    effects    Ask              one question to one member; its answer is Answered, or never comes
               Keep             make the number durable (``ports.Lives.keep_attempt``), draw ``life``
               Restore          catch up to ``committed``, stage the accepted change's objects, write ``RejoinOp``; in any order
                                each may be asked for again. Nothing is ever lowered, and no vote is sent
               Clear            remove the mark, take the incarnation, in one write
               Wake, Note       as for the other machines

A crash at any point: the mark still stands, make a new machine with the ``tried`` that is durable. A wiped disk forgets even
that; then the members remember.

Only members that stored this attempt's incarnation *before* they answered are asked for records, and their answers count only
while none of them knows a newer incarnation of another (``incarnations.py``), or has seen a newer life of it (``standing.py``):
a disk that was set back and has not been told of it yet.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from node.protocol.acceptor import Accepted
from node.protocol.effects import Note, Wake
from node.protocol.events import Tick
from node.protocol.ids import NO_BALLOT, Ballot, NodeId, Position, RepoId
from node.protocol.incarnations import FIRST, Incarnations, merged, older
from node.protocol.messages import AcceptorPage, AcceptorRecords, Enrol, Enrolment, HeldRecord
from node.protocol.quorum import VoterSet
from node.protocol.rejoin_states import TRANSITIONS, Step, Trigger
from node.protocol.standing import Life, together, weighed

ANSWER_S = 3.0
"""How long one step of an attempt waits for its members without hearing anything new."""
RESEND_S = 0.5
PAUSE_S = 0.2
PAUSE_S_MAX = 5.0
"""Between attempts: twice as long each time, up to this; two processes that use one identity must not keep step."""
RESTORES_MAX = 4
"""Repositories being learned at once."""
TRIES_MAX = 8
"""How often one repository is tried before the whole attempt begins anew."""


@dataclass(frozen=True, slots=True)
class Begin:
    """The mark is durable."""


@dataclass(frozen=True, slots=True)
class Answered:
    sender: NodeId
    message: Enrolment | AcceptorPage


@dataclass(frozen=True, slots=True)
class Kept:
    """``problem``: the journal refused."""

    incarnation: int
    life: str
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Restored:
    repository: RepoId
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Cleared:
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Ask:
    to: NodeId
    message: Enrol | AcceptorRecords


@dataclass(frozen=True, slots=True)
class Keep:
    incarnation: int


@dataclass(frozen=True, slots=True)
class Restore:
    """One repository as the members remember it."""

    repository: RepoId
    voters: VoterSet
    promised: Ballot
    """The highest promised."""
    accepted: Accepted | None
    """The accepted record with the highest ballot."""
    committed: Position
    """The highest committed."""
    holders: tuple[NodeId, ...]
    """Who has committed so much, then who has accepted that record, then the others."""


@dataclass(frozen=True, slots=True)
class Clear:
    incarnation: int
    incarnations: Incarnations
    """Of other nodes, as the sources know them: what this node had granted before its loss is among them."""


RejoinEvent = Begin | Answered | Kept | Restored | Cleared | Tick
RejoinEffect = Ask | Keep | Restore | Clear | Wake | Note


class Rejoin:
    """One node's way back. ``spread`` in [0, 1) sets its pauses apart from another process's of the same node."""

    def __init__(
        self,
        me: NodeId,
        members: VoterSet,
        *,
        incarnation: int = FIRST,
        tried: int = 0,
        spread: float = 0.0,
        sources: frozenset[NodeId] | None = None,
    ) -> None:
        """``incarnation`` is the journal's, ``tried`` the highest it ever asked for. ``sources``: an operator's word that
        these members, however few, are to be taken for everything that is left (``--accept-loss``)."""
        self.me = me
        self.step = Step.WAITING
        self.incarnation = 0
        """The one that this attempt asks for."""
        self._members = members
        self._others = tuple(node for node in members.nodes if node != me)
        self._highest = max(incarnation, tried)
        self._spread = spread
        self._sources = sources
        self._life = ""
        self._wanted: frozenset[NodeId] = frozenset()
        """Voters of some repository without whom its majority is not complete: the next attempt waits for them."""
        self._answered: set[NodeId] = set()
        """Who has told (asking), stored (enrolling): from the latter on the only ones whose word counts."""
        self._pages: dict[NodeId, AcceptorPage] = {}
        self._held: dict[NodeId, dict[RepoId, HeldRecord]] = {}
        self._cursor: dict[NodeId, str] = {}
        """Who still has a page to give, and after which repository."""
        self._to_restore: list[Restore] = []
        self._restoring: dict[RepoId, Restore] = {}
        self._tries: dict[RepoId, int] = {}
        self._learned = 0
        self._attempts = 0
        self._ended = ""
        """How the last attempt ended, for people."""
        self._until = 0.0
        self._resend_at = 0.0
        self._out: list[RejoinEffect] = []

    def handle(self, event: RejoinEvent, now: float) -> list[RejoinEffect]:
        """Take one event; return what to do, in order."""
        self._out = []
        match event:
            case Begin() if self.step is Step.WAITING:
                self._ask(now)
            case Answered(sender, message) if sender in self._others:
                self._on_answer(sender, message, now)
            case Kept() if self.step is Step.KEEPING and event.incarnation == self.incarnation:
                self._on_kept(event, now)
            case Restored() if self.step is Step.LEARNING:
                self._on_restored(event, now)
            case Cleared(problem) if self.step is Step.CLEARING:
                self._again(problem, now) if problem else self._move(Trigger.CLEARED)
            case _:
                pass
        self._on_time(now)
        self._wake(now)
        out, self._out = self._out, []
        return out

    @property
    def waits_for(self) -> str:
        """For people: what the present step needs."""
        match self.step:
            case Step.ASKING | Step.ENROLLING:
                open_ = [node for node in self._others if node not in self._answered]
                if self._sources is not None:
                    return f"{', '.join(sorted(self._sources)) or 'nobody'}, as an operator decided"
                return f"{self._members.majority} other members, {len(self._answered)} have answered; no answer from " + (
                    ", ".join(open_) or "nobody"
                )
            case Step.LISTING:
                return f"what {', '.join(sorted(self._cursor))} holds"
            case Step.LEARNING:
                left = len(self._to_restore) + len(self._restoring)
                return f"{left} of {left + self._learned} repositories"
            case Step.DONE:
                return ""
            case Step.WAITING if self._ended:
                return f"its next attempt; the last one ended {self._ended}"
            case _:
                return f"the next step ({self.step.value})"

    def __repr__(self) -> str:
        return f"<Rejoin {self.me} {self.step.name} incarnation {self.incarnation} attempt {self._attempts}>"

    # ------------------------------------------------------------ 1: a new incarnation

    def _ask(self, now: float) -> None:
        self._attempts += 1
        self._move(Trigger.RESUME)
        self._answered = set()
        self._patience(now)
        self._out += (Ask(node, Enrol(0, "")) for node in self._others)
        self._go_on(now)

    def _on_answer(self, sender: NodeId, message: Enrolment | AcceptorPage, now: float) -> None:
        if isinstance(message, AcceptorPage):
            if self.step is Step.LISTING and sender in self._cursor:
                self._on_page(sender, message, now)
            return
        self._highest = max(self._highest, message.newest)
        if self.step is Step.ASKING or (self.step is Step.ENROLLING and message.granted and message.newest == self.incarnation):
            self._answered.add(sender)
            self._go_on(now)
        elif self.step is Step.ENROLLING and message.newest > self.incarnation:
            # Another process of this node, or an answer to an attempt that a wiped disk has forgotten.
            self._again(f"{sender} knows incarnation {message.newest} already", now)

    def _enough(self) -> bool:
        """A majority of all members, this node not counted; or those that an operator named, and whoever else has answered."""
        if self._sources is not None:
            return self._answered >= set(self._others)
        return len(self._answered) >= self._members.majority and self._answered >= self._wanted

    def _go_on(self, now: float, *, late: bool = False) -> None:
        """``late``: the step's time is over. An operator's choice then needs no more than those named."""
        chosen = late and self._sources is not None and self._answered >= self._sources
        if not (self._enough() or chosen):
            return
        if self.step is Step.ASKING:
            self._move(Trigger.KNOWN)
            self.incarnation = self._highest = self._highest + 1
            self._out.append(Keep(self.incarnation))
        else:
            self._move(Trigger.GRANTED)
            self._list(now)

    def _on_kept(self, kept: Kept, now: float) -> None:
        if kept.problem:
            self._again(kept.problem, now)
            return
        self._move(Trigger.KEPT)
        self._life = kept.life
        self._answered = set()
        self._patience(now)
        self._out += (Ask(node, Enrol(self.incarnation, self._life)) for node in self._others)
        self._go_on(now)

    # ------------------------------------------------------------ 2: what they hold

    def _list(self, now: float) -> None:
        sources = self._answered if self._sources is None else self._answered & self._sources
        self._pages = {}
        self._held = {node: {} for node in sorted(sources)}
        self._cursor = dict.fromkeys(sorted(sources), "")
        self._patience(now)
        self._out += (self._page_after(node) for node in self._cursor)
        self._listed(now)

    def _page_after(self, node: NodeId) -> Ask:
        return Ask(node, AcceptorRecords(self.incarnation, self._life, self._cursor[node]))

    def _on_page(self, sender: NodeId, page: AcceptorPage, now: float) -> None:
        if not page.granted:
            self._again(f"{sender} does not know this attempt", now)
            return
        after = self._cursor[sender]
        if page.records and page.records[0].repository <= after:
            return  # an earlier page again
        self._pages[sender] = page
        self._held[sender].update((record.repository, record) for record in page.records)
        self._patience(now)
        if page.more and page.records:
            self._cursor[sender] = page.records[-1].repository
            self._out.append(self._page_after(sender))
        else:
            del self._cursor[sender]
            self._listed(now)

    def _listed(self, now: float) -> None:
        if self._cursor:
            return
        if stale := self._stale():
            self._again(f"{', '.join(sorted(stale))} answered in an older incarnation", now)
            return
        if self._sources is None and (behind := self._behind()):
            self._again(f"{', '.join(sorted(behind))} answered in an older life than another member has seen", now)
            return
        restores = [self._gathered(repository) for repository in self._repositories()]
        if missing := self._uncovered(restores):
            self._wanted = missing
            self._again(f"a majority of some repository's voters needs {', '.join(sorted(missing))} too", now)
            return
        self._move(Trigger.LISTED)
        self._to_restore, self._restoring, self._tries, self._learned = restores, {}, {}, 0
        self._restore_more()

    def _stale(self) -> frozenset[NodeId]:
        """Who answered from an older life than any other source knows of."""
        table = merged(*(page.incarnations for page in self._pages.values()))
        return older(((node, page.incarnation) for node, page in self._pages.items()), table)

    def _behind(self) -> frozenset[NodeId]:
        """Whose disk was set back, by what the other sources have seen of it."""
        told: dict[NodeId, list[Life]] = {}
        for node, page in self._pages.items():
            for seen, life in (*page.seen, *([(node, page.life)] if page.life is not None else ())):
                told.setdefault(seen, []).append(life)
        lives = ((node, page.life) for node, page in self._pages.items() if page.life is not None)
        return frozenset(node for node, life in lives if not weighed(together(*told[node]), life)[0])

    def _repositories(self) -> list[RepoId]:
        return sorted({repository for records in self._held.values() for repository in records})

    def _gathered(self, repository: RepoId) -> Restore:
        """What the sources hold of one repository, taken together.

        History is learned from those only who give it: where one of them is set aside, its word for what is committed may be
        what is wrong with it, and keeps nobody out. Nothing decided is missed. Of the quorum that had accepted a change one
        source is not this node; it names that change, or one that came after it, as accepted, set aside or not, and what stands
        on a history that nobody gives is not taken (``RejoinOp``).
        """
        held = {node: records[repository] for node, records in self._held.items() if repository in records}
        giving = {node: record for node, record in held.items() if not record.set_aside} or held
        committed = max((record.committed for record in giving.values()), key=lambda position: position.version)
        accepted = max(
            (record.accepted for record in held.values() if record.accepted is not None),
            key=lambda record: record.ballot,
            default=None,
        )
        promised = max((record.promised for record in held.values()), default=NO_BALLOT)
        # Only a register that was created names its own voters; the others' are the members as each node knows them.
        voters = max(giving.values(), key=lambda record: record.committed.version).voters
        first = [node for node, record in giving.items() if record.committed == committed]
        second = [node for node, record in held.items() if record.accepted == accepted]
        holders = tuple(dict.fromkeys((*first, *second, *held)))
        return Restore(repository, voters, promised, accepted, committed, holders)

    def _uncovered(self, restores: Iterable[Restore]) -> frozenset[NodeId]:
        """Voters that are missing among the sources where they hold no majority of a repository's own voters."""
        if self._sources is not None:
            return frozenset()
        sources = set(self._held)
        short = [
            restore.voters
            for restore in restores
            if self.me in restore.voters.nodes and len(sources.intersection(restore.voters.nodes)) < restore.voters.majority
        ]
        return frozenset(node for voters in short for node in voters.nodes if node in self._others and node not in sources)

    # ------------------------------------------------------------ 3, 4: learning it

    def _restore_more(self) -> None:
        while self._to_restore and len(self._restoring) < RESTORES_MAX:
            restore = self._to_restore.pop(0)
            self._restoring[restore.repository] = restore
            self._out.append(restore)
        if not (self._to_restore or self._restoring):
            self._move(Trigger.LEARNED)
            known = merged(*(page.incarnations for page in self._pages.values()))
            others = tuple((node, number) for node, number in known if node != self.me)
            self._out.append(Clear(self.incarnation, others))

    def _on_restored(self, restored: Restored, now: float) -> None:
        restore = self._restoring.pop(restored.repository, None)
        if restore is None:
            return
        if restored.problem:
            self._note(f"{restored.repository}: {restored.problem}")
            tries = self._tries[restored.repository] = self._tries.get(restored.repository, 0) + 1
            if tries >= TRIES_MAX:
                self._again(f"{restored.repository}: {restored.problem}", now)
                return
            self._to_restore.append(restore)
        else:
            self._learned += 1
        self._restore_more()

    # ------------------------------------------------------------ time

    def _on_time(self, now: float) -> None:
        if self.step is Step.WAITING and self._attempts and now >= self._until:
            self._ask(now)
        if self.step in (Step.ASKING, Step.ENROLLING) and now >= self._until:
            self._go_on(now, late=True)
        if self.step not in (Step.ASKING, Step.ENROLLING, Step.LISTING):
            return
        if now >= self._until:
            self._again(f"still {self.step.value}: {self.waits_for}", now)
        elif now >= self._resend_at:
            self._resend_at = now + RESEND_S
            self._out += self._questions()

    def _questions(self) -> list[RejoinEffect]:
        """The present step's, to whoever has not answered."""
        if self.step is Step.LISTING:
            return [self._page_after(node) for node in self._cursor]
        message = Enrol(0, "") if self.step is Step.ASKING else Enrol(self.incarnation, self._life)
        return [Ask(node, message) for node in self._others if node not in self._answered]

    def _patience(self, now: float) -> None:
        self._until = now + ANSWER_S
        self._resend_at = now + RESEND_S

    def _again(self, reason: str, now: float) -> None:
        """Interrupted: from step 1 on, with a higher number."""
        self._note(reason)
        self._ended = reason
        self._move(Trigger.AGAIN)
        longest_s = min(PAUSE_S * 2 ** min(self._attempts, 10), PAUSE_S_MAX)
        self._until = now + longest_s * (0.5 + (self._spread + self._attempts * 0.618) % 1.0 / 2)

    def _wake(self, now: float) -> None:
        if self.step is Step.WAITING and self._attempts:
            self._out.append(Wake(self._until))
        elif self.step in (Step.ASKING, Step.ENROLLING, Step.LISTING):
            self._out.append(Wake(max(now, min(self._until, self._resend_at))))

    def _move(self, trigger: Trigger) -> None:
        """The only writer of ``step``."""
        self.step = TRANSITIONS[self.step][trigger]

    def _note(self, reason: str) -> None:
        self._out.append(Note(reason))
