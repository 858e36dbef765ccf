"""How long a node that was killed needs to be byte-equal again when it returns, while pushes go on.

The node is killed, N pushes are made without it, then it is started while a pusher goes on. Measured from the moment its
process is started: until it serves; until it has applied what was committed when it was started; until it has applied what is
committed by now (asked first, so that only later pushes can be missing). Then the pushes stop, and the two are compared byte
for byte by stock git: refs, HEAD, every object name, ``git fsck``.

    .venv/bin/python -m bench.catching_up [--behind 1000] [--runs 3] [--broker direct] [--json]
"""

import argparse
import hashlib
import subprocess
import time

from bench.lab import Lab, lab, machine, spread, tell, wait
from node.command.drill_load import Lane
from node.command.drill_push import Fate
from node.command.selfcheck import git_environment
from node.command.up import why_not_ready

VICTIM = 3
TIMEOUT_S = 120.0


def main() -> int:
    options = _options()
    runs = []
    with lab(options.broker) as cluster:
        for number in range(options.runs):
            runs.append(once(cluster, cluster.create(f"bench/behind-{number}"), options.behind, options.pause))
    names = ("serves_s", "caught_up_s", "current_s")
    result: dict[str, object] = {
        "behind": options.behind,
        "broker": options.broker,
        "equal": all(run["equal"] for run in runs),
        **{name: spread([float(str(run[name])) for run in runs]) for name in names},
        "runs": runs,
        **machine(),
    }
    current = spread([float(str(run["current_s"])) for run in runs])
    sentence = f"{options.behind} pushes behind: byte-equal {current['p50']} s (worst {current['max']} s) after its start"
    tell(result, options.json, sentence)
    return 0


def once(cluster: Lab, repository: str, behind: int, pause_s: float) -> dict[str, object]:
    """One absence and return."""
    path = f"/repos/{repository}"
    before = Lane([cluster.client(1, repository)], "before")
    before.once()
    cluster.wait_well()
    cluster.kill(VICTIM)
    began = time.monotonic()
    while len(before.pushed) < behind + 1:
        before.once()
    made_s = time.monotonic() - began
    goes_on = Lane([cluster.client(2, repository)], "goes-on", pause_s)
    goes_on.start()
    started_at = cluster.start(VICTIM)
    target = int(cluster.local(1, path)["version"])

    def version(number: int) -> int:
        return int(cluster.local(number, path).get("version", -1))

    def level() -> bool:
        there = version(1)
        return there > 0 and version(VICTIM) >= there

    serves_at = wait(lambda: why_not_ready(cluster.node(VICTIM)) is None, TIMEOUT_S, "it serves")
    caught_up_at = wait(lambda: version(VICTIM) >= target, TIMEOUT_S, "it caught up")
    current_at = wait(level, TIMEOUT_S, "it is current")
    time.sleep(1.0)
    meanwhile = goes_on.stop()
    wait(lambda: version(VICTIM) == version(1) == version(2), 10, "all are at one version")
    prints = [fingerprint(cluster, number, repository) for number in (1, 2, VICTIM)]
    missing = cluster.lost(VICTIM, repository, [*before.pushed, *meanwhile])
    cluster.wait_well()
    return {
        "made_s": round(made_s, 1),
        "behind": target - 2,
        "pushes_meanwhile": len(meanwhile),
        "acknowledged_meanwhile": sum(each.fate is Fate.ACKNOWLEDGED for each in meanwhile),
        "serves_s": round(serves_at - started_at, 2),
        "caught_up_s": round(caught_up_at - started_at, 2),
        "current_s": round(current_at - started_at, 2),
        "equal": len(set(prints)) == 1 and not missing,
        "lost": missing,
        "packs": len(list((cluster.node(VICTIM).data / f"{repository}.git/objects/pack").glob("*.pack"))),
    }


def fingerprint(cluster: Lab, number: int, repository: str) -> str:
    """Of what stock git finds on a node's disk, and of where the node says it stands; fails if fsck finds anything."""
    folder = cluster.node(number).data / f"{repository}.git"

    def git(*arguments: str) -> bytes:
        command = ["git", "-c", f"safe.directory={folder}", *arguments]
        done = subprocess.run(command, cwd=folder, env=git_environment(folder), capture_output=True, check=True)
        return done.stdout

    git("fsck", "--strict", "--full", "--no-progress", "--no-dangling")
    seen = cluster.local(number, f"/repos/{repository}")
    objects = b"".join(sorted(git("rev-list", "--objects", "--all").splitlines(keepends=True)))
    parts = (git("show-ref"), (folder / "HEAD").read_bytes(), objects, f"{seen['version']} {seen['digest']}".encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="How long a node that was away needs to be byte-equal again.")
    parser.add_argument("--behind", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--pause", type=float, default=0.02, help="seconds between the pushes that go on meanwhile")
    parser.add_argument("--broker", default="direct")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
