"""Messages that can have no effect any more, whatever happens: they are taken away as soon as they are.

A message that waits for its delivery doubles the states of everything else. Taken away are

* replies at a ballot whose count is over at their coordinator: ballots only rise, so it is never counted again;
* claims, prepares and aborts below what their voter has promised, when the coordinator that would hear of the refusal has left
  that ballot too;
* everything to or for a node that is down for good.

That it has no effect is not believed: it is delivered on trial, and must change nothing and answer nothing that counts. If it
does, it stays, and the search says so.
"""

from node.protocol.coordinator_states import State
from node.protocol.messages import Abort, Claim, Prepare, Promise, Refused, Vote
from tests.simulation.exhaustive.local import Local
from tests.simulation.exhaustive.parts import Parts


class Dead:
    """Remembers its verdicts."""

    def __init__(self, parts: Parts, *, restarts: bool) -> None:
        self._parts = parts
        self._restarts = restarts
        self.surprises = 0
        """How often such a message had an effect all the same: then it stays. Never, unless a bug is planted."""
        self._known: dict[tuple[int, int, int], bool] = {}

    def can_do_nothing(self, parcel: int, to: int, sender: int) -> bool:
        """``to`` and ``sender`` are the parts of its receiver and its sender."""
        key = (parcel, to, sender)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._try(parcel, to, sender)
        return known

    def _try(self, parcel: int, to: int, sender: int) -> bool:
        parts = self._parts
        message, receiver = parts.parcels[parcel].message, parts.locals[to]
        if not receiver.up:
            return not self._restarts
        request = isinstance(message, Claim | Prepare | Abort)
        if isinstance(message, Claim | Prepare | Abort):
            dead = _refused_in_vain(message, receiver, parts.locals[sender])
        else:
            dead = _over(message, receiver)
        if dead:
            result = parts.deliver(to, parcel)[0]
            if result.node != to or result.facts or (result.parcels and not request):
                self.surprises += 1
                return False
        return dead


def _refused_in_vain(message: Claim | Prepare | Abort, receiver: Local, sender: Local) -> bool:
    assert receiver.voter is not None
    if message.ballot >= receiver.voter.record.promised:
        return False
    left = sender.coordinator is None or sender.coordinator._ballot != message.ballot
    return left and sender.record.promised >= message.ballot


def _over(message: object, receiver: Local) -> bool:
    coordinator = receiver.coordinator
    assert coordinator is not None
    if isinstance(message, Promise):
        return message.ballot != coordinator._ballot or coordinator.state is not State.CLAIMING
    if isinstance(message, Vote):
        return coordinator._proposal is None or coordinator._proposal.ballot != message.ballot
    if isinstance(message, Refused):
        return message.ballot != coordinator._ballot or coordinator.state in (State.IDLE, State.WAITING)
    return False
