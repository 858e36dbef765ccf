"""What one repository's driver needs of its node: the ports, and who is there."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from node.config import Config
from node.faults import Faults
from node.ports.journal import Journal
from node.ports.objects import ObjectStore
from node.ports.surroundings import Clock, Entropy, Signer
from node.ports.transport import Peers, Transport
from node.protocol.ids import NodeId, RepoId
from node.protocol.messages import Status
from node.protocol.standing import Life
from node.trace import Trace

if TYPE_CHECKING:
    from node.replica import Replica


@dataclass(frozen=True, slots=True)
class Edges:
    """What a replica needs of its node."""

    config: Config
    clock: Clock
    entropy: Entropy
    signer: Signer
    journal: Journal
    store: ObjectStore
    transport: Transport
    peers: Peers
    trace: Trace
    faults: Faults
    suspected: Callable[[], frozenset[NodeId]]
    unreachable: Callable[[NodeId], None]
    question: Callable[["Replica"], Coroutine[Any, Any, list[Status]]]
    """R5: the answers of a majority about this repository, the own one included."""
    alarms: Callable[[RepoId, str], None]
    may_repeat: Callable[[], bool]
    """Whether the retry budget has room for one more request that repeats an earlier one."""
    lives: Callable[[NodeId, Life | None], bool]
    """R4: whether an answer of this node, given in this life of it, may be counted (``seen.SeenLives.accept``)."""
