"""Group commit: requests that wait for one repository are laid into one change, in order (C1).

Whatever refuses a single request (old values, names, conflicts) is decided here, before any prepare, and takes it out of the
batch; after the prepare the batch has one outcome. Creations and deletions travel alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from node.protocol.change import REQUESTS_PER_CHANGE_MAX, Change, ChangeKind, RefUpdate, Request
from node.protocol.events import Submitted
from node.protocol.ids import RefName, TxnId
from node.protocol.messages import INLINE_TOTAL_BYTES_MAX
from node.protocol.register import Draft, Register

CHANGE_BYTES_MAX = 6 * 1024 * 1024
"""Ref updates of one batch, roughly as JSON: a prepare, and a promise that carries the change, must fit one envelope."""

_UPDATE_BYTES = 220
"""An update as JSON, without its ref's name."""


@dataclass(slots=True)
class Pending:
    """One submitted request on its way to an outcome."""

    submitted: Submitted
    txn: TxnId
    """Of the present try; the first one is ``submitted.request.txn``."""
    tries: int = 1
    alone: bool = False
    """After a no, the batch's requests are formed again singly."""
    answered: bool = False
    """The client was told something already (``unknown``); the settled outcome is only recorded."""
    rejections: tuple[tuple[RefName, str], ...] = ()

    @classmethod
    def of(cls, submitted: Submitted) -> "Pending":
        return cls(submitted, submitted.request.txn)

    def again(self, *, alone: bool = False) -> "Pending":
        """The same request as a new change with a new id: only after the old one is certainly aborted (C6)."""
        tries = self.tries + 1
        return replace(self, txn=TxnId(f"{self.submitted.request.txn}.{tries}"), tries=tries, alone=alone, rejections=())


@dataclass(slots=True)
class Batch:
    """What became of forming one: the change, who is in it, and who was refused before any vote."""

    change: Change | None = None
    taken: list[Pending] = field(default_factory=list)
    rejected: list[tuple[Pending, str]] = field(default_factory=list)
    left: list[Pending] = field(default_factory=list)


def form(register: Register, queue: Sequence[Pending]) -> Batch:
    """Lay ``queue`` on ``register``, first come first served, until the change is full."""
    batch = Batch()
    draft = Draft(register)
    requests: list[Request] = []
    change_bytes = inline_bytes = 0
    for n, pending in enumerate(queue):
        asked = pending.submitted
        if asked.kind is not ChangeKind.UPDATE or pending.alone:
            if requests:
                batch.left += queue[n:]
                break
            _form_alone(register, draft, pending, batch)
            if batch.taken:
                batch.left += queue[n + 1 :]
                return batch
            continue
        change_bytes += sum(len(update.ref) + _UPDATE_BYTES for update in asked.request.updates)
        inline_bytes += asked.inline_bytes
        full = len(requests) >= REQUESTS_PER_CHANGE_MAX or change_bytes > CHANGE_BYTES_MAX
        if requests and (full or inline_bytes > INLINE_TOTAL_BYTES_MAX):
            batch.left += queue[n:]
            break
        request = _lay(register, draft, pending, batch)
        if request is not None:
            requests.append(request)
            batch.taken.append(pending)
    if requests:
        batch.change = Change(register.repository, register.position, ChangeKind.UPDATE, tuple(requests))
    return batch


def _form_alone(register: Register, draft: Draft, pending: Pending, batch: Batch) -> None:
    asked = pending.submitted
    request: Request | None = replace(asked.request, txn=pending.txn)
    creates = asked.kind is ChangeKind.CREATE
    if asked.kind is ChangeKind.UPDATE:
        request = _lay(register, draft, pending, batch)
    elif creates and register.exists:
        batch.rejected.append((pending, f"{register.name} exists"))
        return
    elif not creates and not register.exists:
        batch.rejected.append((pending, "repository does not exist"))
        return
    if request is not None:
        voters = register.voters if creates else None
        batch.change = Change(register.repository, register.position, asked.kind, (request,), asked.name, voters)
        batch.taken.append(pending)


def _lay(register: Register, draft: Draft, pending: Pending, batch: Batch) -> Request | None:
    """One push: what the draft takes of it, or ``None`` when nothing is left (then it is in ``batch.rejected``)."""
    asked = pending.submitted
    if not register.exists:
        batch.rejected.append((pending, "repository does not exist"))
        return None
    fitting, refused = _sift(draft, asked.request.updates)
    if refused and (asked.atomic or not fitting):
        pending.rejections = tuple(refused)
        batch.rejected.append((pending, refused[0][1]))
        return None
    pending.rejections = tuple(refused)
    for update in fitting:
        draft.take(update)
    request = replace(asked.request, txn=pending.txn, updates=tuple(fitting), head=draft.head_after())
    draft.point_head(request.head)
    return request


def _sift(draft: Draft, updates: Sequence[RefUpdate]) -> tuple[list[RefUpdate], list[tuple[RefName, str]]]:
    """Split one push into what can be taken in order (deletes first, so that ``a`` may give way to ``a/b``) and what not."""
    trial = draft.copy()
    fitting: list[RefUpdate] = []
    refused: list[tuple[RefName, str]] = []
    seen: set[RefName] = set()
    for update in sorted(updates, key=lambda update: not update.deletes):
        reason = "multiple updates for one ref" if update.ref in seen else trial.refuses(update)
        seen.add(update.ref)
        if reason:
            refused.append((update.ref, reason))
        else:
            trial.take(update)
            fitting.append(update)
    return fitting, refused
