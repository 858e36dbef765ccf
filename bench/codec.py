"""How long sealing and opening a small prepare takes: it is on every push's path, twice per peer.

Run: python -m bench.codec
"""

import time
from statistics import median

from broker.codec import Codec
from node.protocol.ids import NodeId
from tests.unit.broker_samples import keyrings, prepare

ROUNDS, TIMES = 15, 300
TARGET_MS = 0.4


def main() -> None:
    """Prints medians over rounds; the target is for both together."""
    one, two = NodeId("node-1"), NodeId("node-2")
    rings = keyrings(one, two)
    sender, taker = Codec("bench", one, 1, rings[one]), Codec("bench", two, 1, rings[two])
    message = prepare(pack_bytes=1024)
    sealing, opening = [], []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        sealed = [sender.seal(message, two, timeout_s=2.0) for _ in range(TIMES)]
        middle = time.perf_counter()
        for one_of_them in sealed:
            taker.open(one_of_them.data)
        sealing.append((middle - began) / TIMES * 1000)
        opening.append((time.perf_counter() - middle) / TIMES * 1000)
    total = median(sealing) + median(opening)
    size = len(sealed[0].data)
    print(  # noqa: T201
        f"prepare of {size} bytes: seal {median(sealing):.3f} ms, open {median(opening):.3f} ms, "
        f"together {total:.3f} ms (target {TARGET_MS} ms)"
    )


if __name__ == "__main__":
    main()
