"""What a node cannot make itself: time, chance, and signatures of its key."""

from typing import Protocol

from node.protocol.ids import NodeId, TxnId


class Clock(Protocol):
    """Time for deadlines (monotonic) and for people (wall)."""

    def now(self) -> float:
        """Monotonic seconds."""
        ...

    def wall_ms(self) -> int:
        """Milliseconds since 1970: told to people, never used for safety."""
        ...


class Entropy(Protocol):
    """Chance, so that tests and the simulator can take it away."""

    def uniform(self, upper: float) -> float:
        """A number in [0, upper)."""
        ...

    def txn_id(self) -> TxnId:
        """A transaction id never used before."""
        ...


class Signer(Protocol):
    """The node's own Ed25519 key, and the keyring of everybody's public keys, retired ones included."""

    node: NodeId

    def sign(self, message: bytes) -> bytes: ...

    def verify(self, node: NodeId, message: bytes, signature: bytes) -> bool:
        """Whether any key of ``node`` made this signature; False for a stranger."""
        ...
