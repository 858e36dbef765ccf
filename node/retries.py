"""The retry budget: of the requests of this node to its peers at most a tenth may be repetitions, and a few a second always.

A storm feeds itself where every failure is answered by another request. So whoever would ask again takes a token first, and
waits for the next occasion if there is none; requests that are made for the first time earn a tenth of one each. The floor
lets a quiet node, whose few requests earn nothing, still repeat what it must. A refused repetition loses nothing: to the
protocol it is one more message that was lost, and the next occasion comes by a timer.
"""

from node.ports.surroundings import Clock

RATIO = 0.1
FLOOR_PER_S = 10.0
TOKENS_MAX = 100.0
"""What can be saved up: a burst of so many repetitions after a quiet time."""


class RetryBudget:
    """One node's. ``taken`` and ``refused`` count."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._tokens = TOKENS_MAX
        self._filled_at: float | None = None
        self.taken = 0
        self.refused = 0

    def __repr__(self) -> str:
        return f"<RetryBudget {self._tokens:.1f} tokens, {self.taken} taken, {self.refused} refused>"

    def earn(self) -> None:
        """A request is made for the first time, or that is as good."""
        self._tokens = min(TOKENS_MAX, self._tokens + RATIO)

    def take(self) -> bool:
        """Whether one more repetition may be made now."""
        now = self._clock.now()
        self._tokens = min(TOKENS_MAX, self._tokens + (now - (self._filled_at or now)) * FLOOR_PER_S)
        self._filled_at = now
        if self._tokens < 1.0:
            self.refused += 1
            return False
        self._tokens -= 1.0
        self.taken += 1
        return True
