"""How long things may take. Liveness only: no rule of safety looks at any of these."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. ``prepare_s`` is "the deadline" that people are told about."""

    prepare_s: float = 2.0
    """Quorum deadline of a request, from its submission to its decision."""
    abort_s: float = 0.6
    """How much longer a client is kept waiting for the abort of its change, before it is told ``unknown``."""
    hold_s: float = 0.3
    """C7: how long after an acceptance a foreign claim may be delayed."""
    doubt_jitter_s: float = 0.4
    """R1: spread of settlers, so that they do not duel."""
    backoff_s: float = 0.03
    """First pause after a lost claim; doubles up to ``backoff_max_s``."""
    backoff_max_s: float = 1.0
    resend_s: float = 0.5
    """Between identical resends of what must not be given up."""
    grace_s: float = 0.1
    """After a decision: how long the answer waits for the other live voters, so that it can name them."""
