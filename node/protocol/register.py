"""The register's value: ref table, HEAD, "deleted", and the pure questions one can ask of it.

``check`` answers what a single request may not do (old values, names, directory/file conflicts), in git's own words;
``applied`` is the value after a change. Both are functions of the value alone, so every voter at one base answers alike:
a found change can never be refused by one voter for a reason that another does not have.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from node.protocol.change import Change, ChangeKind, RefUpdate
from node.protocol.ids import ORIGIN, ZERO_OID, NodeId, Oid, Position, RefName, RepoId, digest_of
from node.protocol.quorum import VoterSet

DEFAULT_HEAD = RefName("refs/heads/main")


@dataclass(frozen=True, slots=True)
class Ref:
    """Where a ref points, and what that peels to when it is an annotated tag."""

    oid: Oid
    peeled: Oid | None = None


EMPTY: Mapping[RefName, Ref] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Register:
    """The committed value of one repository at ``position``."""

    repository: RepoId
    voters: VoterSet
    """From the creation change; before there is one, the configured members."""
    position: Position = ORIGIN
    exists: bool = False
    name: str = ""
    head: RefName = DEFAULT_HEAD
    refs: Mapping[RefName, Ref] = field(default_factory=lambda: EMPTY)
    floor: int = 0
    """Version of the last deletion: packs of changes up to it are gone, and nobody needs them."""

    def applied(self, change: Change) -> "Register":
        """The value after ``change``, which must stand on this position."""
        if change.base != self.position:
            raise ValueError(f"{change.base} is not where {self.repository} stands ({self.position})")
        at = change.position
        if change.kind is ChangeKind.CREATE:
            assert change.voters is not None
            head = change.requests[0].head or DEFAULT_HEAD
            return replace(self, position=at, exists=True, name=change.name, head=head, refs=EMPTY, voters=change.voters)
        if change.kind is ChangeKind.DELETE:
            return replace(self, position=at, exists=False, refs=EMPTY, floor=at.version)
        head = self.head
        refs = dict(self.refs)
        for request in change.requests:
            _update(refs, request.updates)
            head = request.head or head
        return replace(self, position=at, head=head, refs=MappingProxyType(refs))

    def refuses(self, change: Change) -> str | None:
        """Why ``change`` cannot stand on this value, or ``None``: what a voter checks before its yes (V2)."""
        if change.kind is ChangeKind.CREATE:
            if self.exists:
                return f"{self.name} exists"
            known = self.position.version > 0
            return "the voter set of a repository never changes" if known and change.voters != self.voters else None
        if not self.exists:
            return "repository does not exist"
        draft = Draft(self)
        for request in change.requests:
            for update in request.updates:
                if reason := draft.refuses(update):
                    return f"{update.ref}: {reason}"
                draft.take(update)
            draft.point_head(request.head)
        return None

    def __repr__(self) -> str:
        return f"<Register {self.repository} {self.position} {'exists' if self.exists else 'absent'} {len(self.refs)} refs>"


class Draft:
    """A ref table under construction: requests are laid on it one after another while a batch is formed or checked."""

    def __init__(self, register: Register) -> None:
        self._refs = dict(register.refs)
        self._head = register.head
        self._folders: Counter[str] | None = None
        """How many refs are below each folder; counted when the first ref is created."""

    def copy(self) -> "Draft":
        """A trial of its own."""
        twin = Draft.__new__(Draft)
        twin._refs, twin._head = dict(self._refs), self._head
        twin._folders = None if self._folders is None else self._folders.copy()
        return twin

    def refuses(self, update: RefUpdate) -> str | None:
        """Why this update cannot be next, in git's words, or ``None``."""
        current = self._refs.get(update.ref)
        if update.old != (current.oid if current else ZERO_OID):
            return _stale(update, current)
        if update.deletes:
            return "deletion of the current branch prohibited" if current and update.ref == self._head else None
        return None if current else self._conflict(update.ref)

    def take(self, update: RefUpdate) -> None:
        if self._folders is not None and update.deletes != (update.ref not in self._refs):
            self._folders.update(dict.fromkeys(_parents(update.ref), -1 if update.deletes else 1))
        _update(self._refs, (update,))

    def point_head(self, head: RefName | None) -> None:
        """Move HEAD, if the request says so."""
        self._head = head or self._head

    def head_after(self) -> RefName | None:
        """What HEAD should become if it names no branch while branches exist (a first push of ``master``)."""
        if self._head in self._refs:
            return None
        usual = (RefName("refs/heads/main"), RefName("refs/heads/master"))
        branches = (ref for ref in self._refs if ref.startswith("refs/heads/"))
        return next((ref for ref in usual if ref in self._refs), min(branches, default=None))

    def _conflict(self, ref: RefName) -> str | None:
        """A ref cannot be a directory and a file at once."""
        for parent in _parents(ref):
            if parent in self._refs:
                return f"cannot create '{ref}': '{parent}' exists"
        if self._folders is None:
            self._folders = Counter(parent for other in self._refs for parent in _parents(other))
        if not self._folders[ref]:
            return None
        below = next(other for other in self._refs if other.startswith(f"{ref}/"))
        return f"cannot create '{ref}': '{below}' exists"


def _stale(update: RefUpdate, current: Ref | None) -> str:
    if current is None:
        return "reference does not exist"
    if update.old == ZERO_OID:
        return f"reference already exists, fetch first (it is at {current.oid[:10]})"
    return f"fetch first (stale: it is at {current.oid[:10]}, not {update.old[:10]})"


def preferred(repository: RepoId, voters: VoterSet, alive: Iterable[NodeId]) -> NodeId | None:
    """The first live voter by rendezvous hash (C7): a preference for who writes, never a safety rule."""
    candidates = sorted(set(alive).intersection(voters.nodes), key=lambda node: digest_of(repository, node))
    return candidates[0] if candidates else None


def _update(refs: dict[RefName, Ref], updates: Iterable[RefUpdate]) -> None:
    for update in updates:
        if update.deletes:
            refs.pop(update.ref, None)
        else:
            refs[update.ref] = Ref(update.new, update.peeled)


def _parents(ref: RefName) -> Iterable[RefName]:
    """``refs/heads/a/b`` → ``refs/heads/a``; the namespaces themselves are no refs and are left out."""
    parts = ref.split("/")
    return (RefName("/".join(parts[:n])) for n in range(3, len(parts)))
