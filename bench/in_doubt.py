"""How long a push stays in doubt when its coordinator is killed, as another node sees it.

Three ways to die, in turn:

    before-decision      a quorum has voted yes, nothing is decided: both others hold the change and wait (node/faults.py)
    before-commit-sent   decided and durable at the coordinator, nobody has heard of it
    at-random            SIGKILL somewhere in the middle of a push, other pushes going on through another node

Counted from the moment at which the client's connection broke (the node's death) until ``GET /transactions/{id}`` on another
node says committed or aborted. The client has no id: it is read from that node's history, where the change appears; at random
some pushes never reached a voter, and those count until no place in history is left for them
(``node/command/drill_doubts.py``). In the first two ways nothing else is pushed: the others settle by themselves (R1). A
fault that did not fire fails the run.

    .venv/bin/python -m bench.in_doubt [--kills 100] [--broker direct] [--minutes 30] [--json]
"""

import argparse
import random
import time
from collections.abc import Iterator

from bench.lab import DEADLINE_S, Lab, lab, machine, spread, tell, wait
from node.command.drill_doubts import CERTAIN, Doubts
from node.command.drill_load import Lane
from node.command.drill_push import ZERO, Client, Fate, Pushed, commit

WAYS = ("before-decision", "before-commit-sent", "at-random")
COORDINATOR = 1
SETTLED_TIMEOUT_S = 30.0


def main() -> int:
    options = _options()
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    outcomes: dict[str, int] = {}
    undoubted = 0
    stop_at = time.monotonic() + options.minutes * 60
    chance = random.Random()
    with lab(options.broker) as cluster:
        repository = cluster.create("bench/in-doubt")
        for number in range(options.kills):
            if time.monotonic() > stop_at:
                break
            way = WAYS[number % len(WAYS)]
            if cluster.alive(COORDINATOR):
                cluster.kill(COORDINATOR)
            cluster.start(COORDINATOR, "" if way == "at-random" else way)
            cluster.wait_well()
            if way == "at-random":
                found = list(_at_random(cluster, repository, number, chance))
                undoubted += not found
            else:
                found = [_at_fault(cluster, repository, number, way)]
            for outcome, seconds in found:
                times[way].append(seconds)
                outcomes[outcome] = outcomes.get(outcome, 0) + 1
    everything = [seconds for some in times.values() for seconds in some]
    result: dict[str, object] = {
        "broker": options.broker,
        "kills": len(everything) + undoubted,
        "in_doubt": len(everything),
        "nothing_in_doubt": undoubted,
        "outcomes": outcomes,
        "deadline_s": DEADLINE_S,
        "seconds": spread(everything),
        "by_way": {way: {"count": len(some), **spread(some)} for way, some in times.items() if some},
        "all": [round(seconds, 3) for seconds in sorted(everything)],
        "within_two_deadlines": sum(seconds <= 2 * DEADLINE_S for seconds in everything),
        **machine(),
    }
    seen = spread(everything)
    tell(
        result,
        options.json,
        f"in doubt after {result['kills']} kills of the coordinator: p50 {seen['p50']} s, p99 {seen['p99']} s, "
        f"worst {seen['max']} s; two deadlines are {2 * DEADLINE_S} s ({outcomes})",
    )
    return 0


def _at_fault(cluster: Lab, repository: str, number: int, way: str) -> tuple[str, float]:
    """One push that its coordinator dies of."""
    before = cluster.fired(COORDINATOR)
    oid, pack = commit(ZERO, f"{way} {number} {time.time_ns()}\n")
    client = cluster.client(COORDINATOR, repository)
    done = client.push(f"refs/heads/fault-{number}", ZERO, oid, pack)
    client.close()
    assert done.fate is Fate.UNKNOWN, done
    watched = _watch(cluster, repository, done)
    assert cluster.fired(COORDINATOR) == before + 1, f"{way} did not fire"
    return watched


def _watch(cluster: Lab, repository: str, done: Pushed) -> tuple[str, float]:
    other = 2 + (hash(done.new) & 1)
    seen = int(cluster.local(other, f"/repos/{repository}")["version"]) - 1
    txn = ""
    give_up_at = time.monotonic() + SETTLED_TIMEOUT_S
    while time.monotonic() < give_up_at:
        if not txn:
            page = cluster.local(other, f"/repos/{repository}/history?since={max(seen, 0)}&limit=200")
            for change in page.get("changes", []):
                for request in change["requests"]:
                    if any(update["new"] == done.new for update in request["updates"]):
                        txn = request["transaction_id"]
        if txn and (outcome := cluster.local(other, f"/transactions/{txn}").get("outcome")) in CERTAIN:
            return str(outcome), time.monotonic() - done.ended_at
        time.sleep(0.02)
    raise AssertionError(f"not settled after {SETTLED_TIMEOUT_S} s: {done}")


def _at_random(cluster: Lab, repository: str, number: int, chance: random.Random) -> Iterator[tuple[str, float]]:
    """What a kill in the middle of pushes leaves in doubt: one push, or none."""
    places = {node: cluster.target(node) for node in (1, 2, 3)}
    doubts = Doubts([places[2], places[3]], repository, places[COORDINATOR].id)

    def told(pushed: Pushed) -> None:
        if pushed.fate is Fate.UNKNOWN:
            doubts.add(pushed)

    def lane(node: int) -> Lane:
        client = Client(places[node].id, places[node].url, repository, 10.0)
        return Lane([client], f"random-{number}-{node}", 0.0 if node == COORDINATOR else 0.05, told)

    lanes = [lane(COORDINATOR), lane(2)]
    for thread in (*lanes, doubts):
        thread.start()
    wait(lambda: all(each.acknowledged() for each in lanes), 20, "pushes get through")
    time.sleep(0.2 + chance.random() * 0.3)
    cluster.kill(COORDINATOR)
    lanes[0].end()
    wait(lambda: not lanes[0].is_alive(), 20, "the last push ends")
    wait(lambda: all(doubt.settled_at for doubt in doubts.all()), SETTLED_TIMEOUT_S, "settled", 0.02)
    lanes[1].stop()
    found = doubts.close(False)
    for doubt in found:
        assert doubt.seconds is not None
        yield doubt.outcome, doubt.seconds


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="How long a push stays in doubt when its coordinator is killed.")
    parser.add_argument("--kills", type=int, default=102)
    parser.add_argument("--minutes", type=float, default=60, help="no kill begins later than this")
    parser.add_argument("--broker", default="direct")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
