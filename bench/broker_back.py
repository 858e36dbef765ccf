"""How soon pushes get through again when the broker is back, at every node.

The broker is killed (SIGKILL) or stopped, in turn, while a pusher at each node goes on; after a pause it is started. It is
*back* when it greets an AMQP client; counted from there until each node has acknowledged a push. Refusals meanwhile are
counted, and that none of them took longer than the deadline.

    .venv/bin/python -m bench.broker_back [--rounds 10] [--json]
"""

import argparse
import threading
import time

from bench.lab import Lab, lab, machine, spread, tell, wait
from node.command import docker
from node.command.brokers import Broker
from node.command.drill_load import Lane
from node.command.drill_push import Fate
from node.command.output import CommandError
from node.command.sockets import speaks_amqp

NODES = (1, 2, 3)
DOWN_S = 2.0
BACK_TIMEOUT_S = 180.0


def main() -> int:
    options = _options()
    ways: dict[str, list[float]] = {"kill": [], "stop": []}
    slowest_refusal = 0.0
    refused = lost = 0
    with lab(options.broker, image=options.image) as cluster:
        for number in range(options.rounds):
            way = ("kill", "stop")[number % 2]
            seconds, failed, slowest, missing = _round(cluster, number, way)
            ways[way] += seconds
            refused += failed
            lost += missing
            slowest_refusal = max(slowest_refusal, slowest)
    everything = [seconds for some in ways.values() for seconds in some]
    result: dict[str, object] = {
        "rounds": options.rounds,
        "seconds": spread(everything),
        "by_way": {way: spread(some) for way, some in ways.items() if some},
        "within_5_s": sum(seconds <= 5 for seconds in everything),
        "of": len(everything),
        "refused_meanwhile": refused,
        "slowest_refusal_s": round(slowest_refusal, 2),
        "lost": lost,
        **machine(),
    }
    seen = spread(everything)
    words = f"pushes after {seen['p50']} s (worst {seen['max']} s) at every node"
    tell(result, options.json, f"broker back {options.rounds} times: {words}")
    return 0


def _round(cluster: Lab, number: int, way: str) -> tuple[list[float], int, float, int]:
    """(seconds per node, refusals, the slowest of them, acknowledged pushes that are missing)."""
    lanes = {}
    repositories = {}
    for node in NODES:
        repositories[node] = cluster.create(f"bench/round-{number}-{node}")
        lanes[node] = Lane([cluster.client(node, repositories[node])], "main", 0.02)
        lanes[node].start()
    wait(lambda: all(lane.acknowledged() for lane in lanes.values()), 20, "pushes get through")
    broker = cluster.broker
    port = cluster.cluster.broker.amqp_port
    gone_at = time.monotonic()
    broker.kill() if way == "kill" else broker.stop()
    time.sleep(DOWN_S)
    starting = threading.Thread(target=_start, args=(broker,))
    starting.start()
    back_at = wait(lambda: speaks_amqp("127.0.0.1", port), BACK_TIMEOUT_S, "the broker is back", 0.02)

    def first(node: int) -> float | None:
        told = [each for each in list(lanes[node].pushed) if each.fate is Fate.ACKNOWLEDGED and each.ended_at > back_at]
        return told[0].ended_at - back_at if told else None

    wait(lambda: all(first(node) is not None for node in NODES), BACK_TIMEOUT_S, "pushes get through again at every node")
    starting.join()
    seconds = [value for node in NODES if (value := first(node)) is not None]
    pushed = {node: lane.stop() for node, lane in lanes.items()}
    meanwhile = [each for some in pushed.values() for each in some if each.ended_at >= gone_at]
    failed = [each for each in meanwhile if each.fate is not Fate.ACKNOWLEDGED]
    cluster.wait_well()
    missing = sum(cluster.lost(2, repositories[node], some) for node, some in pushed.items())
    return seconds, len(failed), max((each.took_s for each in failed), default=0.0), missing


def _start(broker: Broker) -> None:
    """On a crowded machine a start may outlast its own patience: once more, then."""
    for left in (2, 1, 0):
        try:
            broker.start()
        except CommandError:
            if not left:
                raise
        else:
            return


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="How soon pushes get through again when the broker is back.")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--broker", default="local", help="local or docker")
    parser.add_argument("--image", default=docker.IMAGE, help="RabbitMQ's, with --broker docker")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
