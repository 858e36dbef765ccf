"""How fresh a read must be, as its request says: the two headers, for REST and for git alike, and what answers say of it.

    X-Gitquorum-Consistency: linearizable | local     the node's setting counts where it is not given
    X-Gitquorum-Min-Version: 42                       "I have seen version 42 already": serve nothing older

A value that is not understood is refused (400), never taken for the default: its reader would trust what was not promised.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from api.problems import problem
from node.config import Config
from node.ports.service import Consistency
from node.protocol.ids import Position

CONSISTENCY_HEADER = "X-Gitquorum-Consistency"
MIN_VERSION_HEADER = "X-Gitquorum-Min-Version"
VERSION_HEADER = "X-Gitquorum-Version"
DIGEST_HEADER = "X-Gitquorum-Digest"

VERSION_MAX = 2**53 - 1
"""The largest whole number that every JSON reader keeps."""

_VERSION = re.compile(r"[0-9]{1,16}")


@dataclass(frozen=True, slots=True)
class Freshness:
    """What one read wants."""

    consistency: Consistency
    at_least: int = 0


def freshness_of(consistency: Sequence[str], min_version: Sequence[str], config: Config) -> Freshness:
    """From all values of the two headers; raises ``Problem`` (400) with what is allowed."""
    return Freshness(_consistency(consistency, config), _version(min_version))


def _consistency(given: Sequence[str], config: Config) -> Consistency:
    if not given:
        return Consistency(config.consistency)
    try:
        (value,) = given
        return Consistency(value.strip().lower())
    except ValueError:  # several values, or an unknown one
        allowed = " or ".join(each.value for each in Consistency)
        raise problem("bad-header", f"{CONSISTENCY_HEADER} must be {allowed}, given once.") from None


def _version(given: Sequence[str]) -> int:
    if not given:
        return 0
    value = given[0].strip()
    if len(given) > 1 or not _VERSION.fullmatch(value) or int(value) > VERSION_MAX:
        raise problem(
            "bad-header",
            f"{MIN_VERSION_HEADER} must be a version, a whole number from 0 to {VERSION_MAX}, given once: the one that "
            f"{VERSION_HEADER} or a push showed.",
        )
    return int(value)


def position_headers(position: Position | None) -> dict[str, str]:
    """Which version an answer shows, or this node has where it refuses one."""
    if position is None:
        return {}
    return {VERSION_HEADER: str(position.version), DIGEST_HEADER: str(position.digest)}
