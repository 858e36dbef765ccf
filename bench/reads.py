"""What a linearizable read costs over a local one: wall time of ``git ls-remote``, and of the bare requests, interleaved.

One cluster of three on this machine; each round runs both kinds, in turn first. Printed for both protocols of git: medians of
each kind, the median of the differences of pairs, and their quartiles. The same for one bare ``GET /repos/…`` over a kept
connection, where no process is started and the question's own cost shows.

    .venv/bin/python bench/reads.py --rounds 200
"""

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from push import cluster, git, prepare, run

from node.command.selfcheck import git_environment

LOCAL = "X-Gitquorum-Consistency: local"
LINEARIZABLE = "X-Gitquorum-Consistency: linearizable"


def main() -> int:
    options = _options()
    with tempfile.TemporaryDirectory(prefix="gitquorum-bench-") as name:
        folder = Path(name)
        with cluster(folder, options.broker) as (url, broker):
            side = prepare(folder, "reads", url, 5)
            git(folder, side.work, "push", "--quiet", "origin", "refs/bench/5:refs/heads/main")
            result: dict[str, object] = {"broker": broker, "rounds": options.rounds, "load_1m": round(os.getloadavg()[0], 1)}
            for protocol in (2, 0):
                result[f"ls_remote_v{protocol}"] = compare(
                    lambda header, protocol=protocol: ls_remote(folder, url, header, protocol), options.rounds
                )
            with_connection = Rest(url)
            result["rest"] = compare(with_connection.show, options.rounds)
    sys.stdout.write(json.dumps(result, indent=2) + "\n" if options.json else _sentences(result))
    return 0


def compare(read: Callable[[str], None], rounds: int) -> dict[str, float]:
    """Both kinds, in pairs; the first pair is not counted."""
    local: list[float] = []
    linearizable: list[float] = []
    for number in range(rounds + 1):
        pairs = [(LOCAL, local), (LINEARIZABLE, linearizable)]
        for header, times in pairs if number % 2 else reversed(pairs):
            began = time.perf_counter()
            read(header)
            if number:
                times.append((time.perf_counter() - began) * 1000)
    added = [strong - weak for strong, weak in zip(linearizable, local, strict=True)]
    low, middle, high = statistics.quantiles(added, n=4)
    return {
        "local_ms": round(statistics.median(local), 2),
        "linearizable_ms": round(statistics.median(linearizable), 2),
        "medians_differ_ms": round(statistics.median(linearizable) - statistics.median(local), 2),
        "added_ms": round(middle, 2),
        "added_quartiles_ms": [round(low, 2), round(high, 2)],  # type: ignore[dict-item]
        "ratio": round(statistics.median(linearizable) / statistics.median(local), 3),
    }


def ls_remote(folder: Path, url: str, header: str, protocol: int) -> None:
    command = ["git", "-c", f"protocol.version={protocol}", "-c", f"http.extraHeader={header}", "ls-remote", url]
    run(command, git_environment(folder), subprocess.DEVNULL)


class Rest:
    """One connection, kept."""

    def __init__(self, url: str) -> None:
        host, _, path = url.removeprefix("http://").partition("/")
        self._connection = http.client.HTTPConnection(host, timeout=30)
        self._path = f"/repos/{path.removesuffix('.git')}/refs"

    def show(self, header: str) -> None:
        name, _, value = header.partition(": ")
        self._connection.request("GET", self._path, headers={name: value})
        answer = self._connection.getresponse()
        body = answer.read()
        if answer.status != 200 or answer.headers[name] != value:
            raise RuntimeError(f"{answer.status} {body!r}")


def _sentences(result: dict[str, object]) -> str:
    lines = []
    for what, found in result.items():
        if isinstance(found, dict):
            low, high = found["added_quartiles_ms"]
            lines.append(
                f"{what}: local {found['local_ms']} ms, linearizable {found['linearizable_ms']} ms, median of what it adds "
                f"{found['added_ms']} ms (quartiles {low} to {high}), ratio {found['ratio']}"
            )
        else:
            lines.append(f"{what}: {found}")
    return "\n".join(lines) + "\n"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What a linearizable read costs over a local one.")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--broker", default=os.environ.get("GITQUORUM_BROKER", "direct"))
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
