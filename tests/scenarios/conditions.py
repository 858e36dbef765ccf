"""What the world does to a test cluster: delays, losses, crashes. Scripts answer with constants, the simulation with a seed."""

from enum import Enum
from hashlib import sha256
from typing import TYPE_CHECKING

from node.protocol.effects import Effect
from node.protocol.events import Written
from node.protocol.ids import NodeId
from node.protocol.messages import TransportReply, TransportRequest
from tests.scenarios.disk import Pending
from tests.scenarios.words import describe

if TYPE_CHECKING:
    from tests.scenarios.cluster_node import Node
    from tests.scenarios.world import World


class Fault(Enum):
    """How a disk fails a write."""

    NONE = "none"
    REFUSED = "refused"
    """Full for a moment: nothing was written."""
    FAILED = "failed"
    """The fsync failed: perhaps it was written all the same, and nothing more will be."""


class Conditions:
    """What the world does to a cluster; this one is calm. Times in seconds."""

    network_s = 0.010
    journal_s = 0.001
    direct_s = 0.005
    fragile = True
    """Whether ``crashes`` is to be asked at all."""

    def transmit(self, world: "World", sender: "Node", to: NodeId, message: TransportRequest | TransportReply) -> None:
        """A message sets out."""
        delays = self.deliveries(world, sender.name, to, message)
        if not delays and world.say is not None:
            world.tell(sender.name, f"lost on the way to {to}: {describe(message)}")
        for delay_s in delays:
            world.after(delay_s, sender.deliver, to, message)

    def deliveries(self, world: "World", sender: NodeId, to: NodeId, message: TransportRequest | TransportReply) -> list[float]:
        """After how long each copy of a message arrives; no copy, no arrival."""
        return [self.network_s] if self.reaches(world, sender, to) else []

    def absent(self, world: "World", sender: "Node", to: NodeId, message: TransportRequest | TransportReply) -> None:
        """A message arrives at a node that is down: lost, unless somebody keeps it."""

    def reaches(self, world: "World", one: NodeId, other: NodeId) -> bool:
        """Whether direct HTTP between two nodes works now."""
        return True

    def journal_delays(self, node: NodeId) -> tuple[float, float]:
        """Until a write is in the log, and from then until it is fsynced and its machine hears of it."""
        return self.journal_s, 0.0

    def disk_fault(self, node: NodeId) -> Fault:
        return Fault.NONE

    def direct_delay(self) -> float:
        """Of one request over direct HTTP."""
        return self.direct_s

    def answer_delay(self) -> float:
        """Of the answer to a question over direct HTTP."""
        return 0.0

    def apply_delay(self) -> float:
        """V6: from a durable commit to its refs on the disk."""
        return 0.0

    def may_stage(self, node: NodeId) -> bool:
        """Whether ``node`` gets objects from anybody now; if not, it is tried again later, and in the end it is a no."""
        return True

    def crashes(self, world: "World", node: NodeId, before: Effect | Written | Pending) -> bool:
        """Whether ``node`` dies now, instead of performing this effect, syncing this write or hearing of it. Who says yes to
        that has let it crash."""
        return False

    def spread(self, node: NodeId) -> float:
        return (int(sha256(node.encode()).hexdigest()[:4], 16) % 97) / 97
