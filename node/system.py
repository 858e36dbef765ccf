"""The real clock and the real chance behind ``ports.Clock`` and ``ports.Entropy``."""

import secrets
import time
from random import SystemRandom

from node.protocol.ids import TxnId


class SystemClock:
    """Monotonic seconds for deadlines, wall time for people."""

    def now(self) -> float:
        return time.monotonic()

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000


class SystemEntropy:
    """The operating system's randomness."""

    def __init__(self) -> None:
        self._random = SystemRandom()

    def uniform(self, upper: float) -> float:
        return self._random.random() * upper

    def txn_id(self) -> TxnId:
        """80 random bits after a date, so that ids sort roughly by time and never repeat."""
        return TxnId(f"{time.strftime('%Y%m%d', time.gmtime())}-{secrets.token_hex(10)}")
