"""``python -m tests.simulation.replay --seed N``: one schedule, line by line, and the hash of its trace.

The hash is the same for the same seed and code, in any process, whatever PYTHONHASHSEED. ``--hash`` prints nothing else.
"""

import argparse
import hashlib
import sys

from node.protocol.ids import NodeId
from tests.scenarios.laws import Broken
from tests.simulation.schedule import Schedule


class Trace:
    """Listens to a schedule."""

    def __init__(self, *, aloud: bool) -> None:
        self._aloud = aloud
        self._hash = hashlib.sha256()
        self.lines = 0

    def __call__(self, at: float, node: NodeId, text: str) -> None:
        line = f"{at:9.4f}  {node}  {text}\n"
        self.lines += 1
        self._hash.update(line.encode())
        if self._aloud:
            sys.stdout.write(line)

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()


def replay(seed: int, *, aloud: bool = False) -> tuple[str, Broken | None]:
    """The trace's hash, and what was broken."""
    trace = Trace(aloud=aloud)
    try:
        Schedule(seed, trace).run()
    except Broken as broken:
        return trace.digest, broken
    return trace.digest, None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.replay", description=__doc__)
    parser.add_argument("--seed", type=int, required=True, nargs="+")
    parser.add_argument("--hash", action="store_true", help="print the trace's hash only")
    options = parser.parse_args()
    code = 0
    for seed in options.seed:
        digest, broken = replay(seed, aloud=not options.hash)
        sys.stdout.write(f"{digest}\n" if options.hash else f"seed {seed}: trace {digest}\n")
        if broken is not None:
            sys.stdout.write(f"BROKEN {broken}\n")
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())
