"""``python -m tests.nemesis --minutes M --seed S --faults all --json``: faults on real processes, and the verdict.

Exit code 0: no violation found, and every fault fired. 1: something was found; the data are kept, and where is said.
"""

import argparse
import asyncio
import json
import shutil
import signal
import sys
import time
from pathlib import Path

from tests.nemesis.faults import KINDS
from tests.nemesis.field import missing
from tests.nemesis.history import History, read
from tests.nemesis.linearizability import Verdict, check
from tests.nemesis.repository_model import RepositoryModel, calls_of
from tests.nemesis.run import Summary, Wish, explained, new_folder, run, write


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.nemesis", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="of faults; starting and judging come on top (10)")
    parser.add_argument("--seed", type=int, default=None, help="which faults strike, and what clients want (from the clock)")
    parser.add_argument("--faults", default="all", help=f"all, or some of: {', '.join(kind.name for kind in KINDS)}")
    parser.add_argument("--persons", type=int, default=6, help="clients that speak HTTP by themselves (6)")
    parser.add_argument("--git-users", type=int, default=1, help="clients that are stock git (1)")
    parser.add_argument(
        "--json", action="store_true", help="the summary as JSON on standard output; progress is on standard error"
    )
    parser.add_argument("--judge", type=Path, metavar="HISTORY", help="run nothing: is this history.jsonl linearizable?")
    parser.add_argument("--keep", action="store_true", help="keep the data also of a good run")
    options = parser.parse_args()
    if options.judge is not None:
        return judge(options.judge)
    if why := missing():
        sys.stderr.write(f"{why}\n")
        return 2
    seed = options.seed if options.seed is not None else int(time.time())
    folder = new_folder()
    wish = Wish(folder, options.minutes * 60, seed, options.faults.split(","), options.persons, options.git_users)
    began = time.monotonic()

    def say(line: str) -> None:
        sys.stderr.write(f"[{time.monotonic() - began:6.1f}] {line}\n")

    try:
        summary = asyncio.run(_interruptible(wish, say))
    except BaseException:
        sys.stderr.write(f"the run broke off; its data are in {folder}\n")
        raise
    write(summary, folder / "summary.json")
    sys.stdout.write(json.dumps(summary.json(), indent=2) + "\n" if options.json else told(summary))
    if summary.good and not options.keep:
        shutil.rmtree(folder)
    else:
        sys.stderr.write(f"data: {folder} (history.jsonl, summary.json, cluster/node-*/log; disks are images to mount)\n")
    return 0 if summary.good else 1


def judge(file: Path) -> int:
    """Look again at what a run recorded."""
    history = History()
    history.operations += read(file)
    bad = 0
    for name, operations in sorted(history.by_repository().items()):
        finding = check(RepositoryModel(), calls_of(operations))
        bad += finding.verdict is not Verdict.LINEARIZABLE
        sys.stdout.write(f"{name}: {len(operations)} operations, {explained(finding)}\n")
    return int(bad > 0)


async def _interruptible(wish: Wish, say: object) -> Summary:
    """SIGTERM ends it as Ctrl-C does: with everything ended that was started."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await run(wish, say)  # type: ignore[arg-type]


def told(summary: Summary) -> str:
    """For people."""
    figures = {name: value for name, value in summary.json().items() if name not in ("faults", "bad", "faults_not_possible")}
    lines = [f"{name.replace('_', ' '):24} {value}" for name, value in figures.items()]
    lines += [f"fault {name:24} fired {each['fired']} of {each['tried']}" for name, each in summary.faults.items()]
    lines += [f"not possible here: {each}" for each in summary.faults_not_possible]
    lines += [f"BAD {each}" for each in summary.bad] or ["no violation found"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
