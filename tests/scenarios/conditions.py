"""What the world does to a test cluster: delays, losses, crashes. Scripts answer with constants, the simulation with a seed."""

from enum import Enum
from hashlib import sha256
from typing import TYPE_CHECKING

from node.protocol.effects import Effect
from node.protocol.events import Written
from node.protocol.ids import NodeId
from node.protocol.messages import TransportReply, TransportRequest

if TYPE_CHECKING:
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

    def deliveries(self, world: "World", sender: NodeId, to: NodeId, message: TransportRequest | TransportReply) -> list[float]:
        """After how long each copy of a message arrives; no copy, no arrival."""
        return [self.network_s] if self.reaches(world, sender, to) else []

    def reaches(self, world: "World", one: NodeId, other: NodeId) -> bool:
        """Whether direct HTTP between two nodes works now."""
        return True

    def journal_delays(self) -> tuple[float, float]:
        """Until a write is durable, and from then until its machine hears of it."""
        return self.journal_s, 0.0

    def disk_fault(self, node: NodeId) -> Fault:
        return Fault.NONE

    def direct_delay(self) -> float:
        return self.direct_s

    def may_stage(self, node: NodeId) -> bool:
        """Whether ``node`` gets objects from anybody now; if not, it is tried again later, and in the end it is a no."""
        return True

    def crashes(self, world: "World", node: NodeId, before: Effect | Written) -> bool:
        """Whether ``node`` loses its volatile state now, instead of performing this effect or hearing of this write."""
        return False

    def spread(self, node: NodeId) -> float:
        return (int(sha256(node.encode()).hexdigest()[:4], 16) % 97) / 97
