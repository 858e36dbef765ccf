"""``Idempotency-Key``: the same key and content gets the original answer, the same key and other content is refused.

The original answer comes from history: a change carries its request's key, so every node recognises a repetition, for ever,
and across restarts (``Service.create`` and ``delete`` look it up). History is kept per repository, so it cannot see that a
key was used for *another repository*; for that this node remembers its recent keys. That memory is bounded and local: it
catches a client's mistake, it is not a guarantee.
"""

from collections import OrderedDict
from dataclasses import dataclass

from api.problems import problem
from node.protocol.change import ChangeKind
from node.protocol.ids import RefName, RepoId
from node.protocol.outcome import Outcome

KEYS_MAX = 4096


@dataclass(frozen=True, slots=True)
class Content:
    """What makes two requests the same."""

    kind: ChangeKind
    repository: RepoId
    head: RefName | None = None


class KeyMemory:
    """Recently used keys, oldest forgotten first."""

    def __init__(self, keys_max: int = KEYS_MAX) -> None:
        self._keys_max = keys_max
        self._contents: OrderedDict[str, Content] = OrderedDict()

    def check(self, key: str | None, content: Content) -> None:
        """Raises ``Problem`` (422) if this node saw ``key`` with other content."""
        if key is None:
            return
        if self._contents.setdefault(key, content) != content:
            raise problem("key-reused")
        self._contents.move_to_end(key)
        while len(self._contents) > self._keys_max:
            self._contents.popitem(last=False)


def check_outcome(key: str | None, content: Content, outcome: Outcome) -> None:
    """Raises ``Problem`` (422) if history answered ``key`` with a change that was asked for differently."""
    if key is None or outcome.change is None:
        return
    asked = [request for request in outcome.change.requests if request.key == key]
    if not asked:
        return
    if Content(outcome.change.kind, outcome.change.repository, asked[0].head) != content:
        raise problem("key-reused")
