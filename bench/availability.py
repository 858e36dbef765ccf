"""Write availability of a cluster of three with one node gone, the moment of its going included.

A client knows all three nodes, as a load balancer does. Each push is one attempt: it goes to the node that the client
prefers; if that cannot be connected to, nothing was sent, and the same attempt goes to the next. Whatever else happens counts
as it is: acknowledged, or not available (refused, unknown, no answer within 10 s). A node that failed an attempt, or could
not be connected to, is tried last for the next 30 s. Nothing is pushed twice, no failure is left out.

    dead voter         a node that takes no pushes is killed (SIGKILL)
    dead coordinator   the node that takes the pushes is killed, in the middle of one
    frozen voter       SIGSTOP: it still accepts connections, and says nothing
    frozen coordinator the same for the node that takes the pushes

Of N attempts a tenth is made before the fault and is not counted.

    .venv/bin/python -m bench.availability [--pushes 1000] [--broker direct] [--json]
"""

import argparse
import signal
import threading
import time

from bench.lab import Lab, lab, machine, spread, tell, wait
from node.command.drill_push import ZERO, Fate, Pushed, commit

CASES = ("dead voter", "dead coordinator", "frozen voter", "frozen coordinator")
COORDINATOR, VOTER = 1, 3
AVOID_S = 30.0
NODES = (1, 2, 3)


class Balanced:
    """See the module."""

    def __init__(self, cluster: Lab, repository: str) -> None:
        self.clients = {number: cluster.client(number, repository) for number in NODES}
        self.avoided: dict[int, float] = {}
        self.tip = ZERO
        self.branch = 0

    def attempt(self, text: str) -> Pushed:
        oid, pack = commit(self.tip, text)
        ref = f"refs/heads/b{self.branch}"
        now = time.monotonic()
        for number in sorted(NODES, key=lambda number: (self.avoided.get(number, 0.0) > now, number)):
            done = self.clients[number].push(ref, self.tip, oid, pack)
            if done.fate is not Fate.ACKNOWLEDGED:
                self.avoided[number] = time.monotonic() + AVOID_S
            if done.fate is not Fate.UNREACHABLE:
                break
        if done.fate is Fate.ACKNOWLEDGED:
            self.tip = oid
        elif done.fate is Fate.UNKNOWN:
            self.tip, self.branch = ZERO, self.branch + 1
        return done


def main() -> int:
    options = _options()
    cases: dict[str, dict[str, object]] = {}
    with lab(options.broker) as cluster:
        for case in options.case or CASES:
            cases[case] = _case(cluster, case, options.pushes)
    least = min(float(str(seen["availability"])) for seen in cases.values())
    result: dict[str, object] = {"broker": options.broker, "least": least, "cases": cases, **machine()}
    words = "; ".join(f"{case} {float(str(seen['availability'])) * 100:.2f} %" for case, seen in cases.items())
    tell(result, options.json, f"write availability over {options.pushes} pushes each: {words}")
    return 0


def _case(cluster: Lab, case: str, pushes: int) -> dict[str, object]:
    repository = cluster.create(f"bench/{case.replace(' ', '-')}")
    client = Balanced(cluster, repository)
    for number in range(max(1, pushes // 10)):
        client.attempt(f"before {number}\n")
    hit = COORDINATOR if case.endswith("coordinator") else VOTER
    fault_at: list[float] = []

    def strike() -> None:
        time.sleep(0.25)  # pushes go on: it hits in the middle of one, or between two
        fault_at.append(cluster.kill(hit) if case.startswith("dead") else cluster.signal(hit, signal.SIGSTOP))

    striking = threading.Thread(target=strike)
    striking.start()
    made: list[Pushed] = []
    while sum(bool(fault_at) and each.ended_at >= fault_at[0] for each in made) < pushes:
        made.append(client.attempt(f"{case} {len(made)}\n"))
    striking.join()
    if case.startswith("dead"):
        cluster.start(hit)
    else:
        cluster.signal(hit, signal.SIGCONT)
    cluster.wait_well()
    counted = [each for each in made if each.ended_at >= fault_at[0]]
    good = [each for each in counted if each.fate is Fate.ACKNOWLEDGED]
    wait(lambda: len({_version(cluster, number, repository) for number in NODES}) == 1, 60, "all are equal")
    return {
        "attempts": len(counted),
        "acknowledged": len(good),
        "availability": round(len(good) / len(counted), 5),
        "others": [_told(each) for each in counted if each not in good],
        "push_s": spread([each.took_s for each in good]),
        "lost": cluster.lost(hit, repository, made),
    }


def _told(each: Pushed) -> str:
    return f"{each.node}: {each.fate.value} after {each.took_s:.2f} s: {each.reason[:120]}"


def _version(cluster: Lab, number: int, repository: str) -> int:
    return int(cluster.local(number, f"/repos/{repository}").get("version", -number))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Write availability with one of three nodes gone.")
    parser.add_argument("--pushes", type=int, default=1000)
    parser.add_argument("--case", action="append", choices=CASES)
    parser.add_argument("--broker", default="direct")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
