"""Messages that can have no effect any more, whatever happens: they are taken away as soon as they are.

A message that waits for its delivery doubles the states of everything else. Taken away are

* replies at a ballot whose count is over at their coordinator: ballots only rise, so it is never counted again;
* claims, prepares and aborts that their voter can only refuse or answer as before, when the coordinator that would hear of it
  has left that ballot, for ever;
* commits of what their voter has committed, with its certificate;
* everything to or for a node that is down for good.

That it has no effect is not believed: it is delivered on trial, and must change nothing and answer nothing that counts. If it
does, it stays, and the search says so.
"""

from node.protocol.coordinator_states import State
from node.protocol.messages import Abort, Claim, Commit, Prepare, Promise, Refused, TransportReply, TransportRequest, Vote
from tests.simulation.exhaustive.local import Local
from tests.simulation.exhaustive.parts import Parts


class Dead:
    """Remembers its verdicts."""

    def __init__(self, parts: Parts, *, restarts: bool, prompt: bool) -> None:
        """``prompt``: a claim that is promised already is answered at once, and not by one more write under way."""
        self._prompt = prompt
        self._parts = parts
        self._restarts = restarts
        self.surprises = 0
        """How often such a message had an effect all the same: then it stays. Never, unless a bug is planted."""
        self.known: dict[tuple[int, int, int], bool] = {}

    def tried(self, key: tuple[int, int, int]) -> bool:
        """Whether a message can do nothing: its number, the part of its receiver, the part of its sender."""
        verdict = self.known[key] = self._try(*key)
        return verdict

    def _try(self, parcel: int, to: int, sender: int) -> bool:
        parts = self._parts
        message, receiver = parts.parcels[parcel].message, parts.locals[to]
        if not receiver.up:
            return not self._restarts
        if receiver.rejoining or not isinstance(message, TransportRequest | TransportReply):
            return False
        request = isinstance(message, Claim | Prepare | Abort)
        if isinstance(message, Claim | Prepare | Abort):
            writes = isinstance(message, Claim) and not self._prompt
            dead = _answered_in_vain(message, receiver, parts.locals[sender], writes=writes)
        else:
            dead = _over(message, receiver)
        if dead:
            results = parts.deliver(to, parcel)
            if not results:
                return False  # it waits already; see Parts.deliver
            result = results[0]
            if result.node != to or result.facts or (result.parcels and not request):
                self.surprises += 1
                return False
        return dead


def _answered_in_vain(message: Claim | Prepare | Abort, receiver: Local, sender: Local, *, writes: bool) -> bool:
    assert receiver.voter is not None
    record = receiver.voter.record
    least = record.promised if isinstance(message, Claim) else record.accepted_ballot
    if message.ballot >= record.promised and (writes or message.ballot != least):
        return False
    left = sender.coordinator is None or sender.coordinator._ballot != message.ballot
    return left and sender.record.promised >= message.ballot


def _over(message: object, receiver: Local) -> bool:
    if isinstance(message, Commit):
        version = message.position.version
        return version <= len(receiver.history) and receiver.history[version - 1].certificate is not None
    coordinator = receiver.coordinator
    assert coordinator is not None
    if isinstance(message, Promise):
        return message.ballot != coordinator._ballot or coordinator.state is not State.CLAIMING
    if isinstance(message, Vote):
        return coordinator._proposal is None or coordinator._proposal.ballot != message.ballot
    if isinstance(message, Refused):
        return message.ballot != coordinator._ballot or coordinator.state in (State.IDLE, State.WAITING)
    return False
