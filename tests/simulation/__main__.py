"""``python -m tests.simulation --schedules 100000 --workers 2``: run schedules, show progress, print the table.

Exit code 1 if a law was broken or a kind of fault never fired.
"""

import argparse
import json
import sys
import time

from tests.simulation.fleet import Report, replay_command, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--schedules", type=int, default=100_000, help="how many seeds (100000)")
    parser.add_argument("--from", dest="first", type=int, default=0, help="the first seed (0)")
    parser.add_argument("--workers", type=int, default=2, help="processes (2)")
    parser.add_argument("--seconds", type=float, default=None, help="stop after this long")
    parser.add_argument("--json", action="store_true", help="print the report as JSON, and no progress")
    options = parser.parse_args()
    progress = None if options.json else Progress(options.schedules)
    report = run(
        options.schedules, first=options.first, workers=options.workers, seconds_max=options.seconds, progress=progress
    )
    if options.json:
        json.dump(report.as_json(), sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        sys.stdout.write("\n" + table(report, options.first))
    return 0 if report.ok else 1


class Progress:
    """One line, again and again; every ten seconds where nobody looks. What is broken is told at once."""

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        self._said_at = 0.0
        self._broken: set[int] = set()

    def __call__(self, report: Report) -> None:
        for seed, text in report.failures:
            if seed not in self._broken:
                self._broken.add(seed)
                sys.stderr.write(f"\nBROKEN {text[:400]}\n  replay: {replay_command(seed)}\n")
        terminal = sys.stdout.isatty()
        if time.monotonic() - self._said_at < (0.5 if terminal else 10.0):
            return
        self._said_at = time.monotonic()
        rate = report.schedules / report.seconds
        line = f"{report.schedules} of {self._wanted} schedules, {rate:.0f}/s, {len(report.failures)} broken"
        sys.stdout.write(f"\r{line}  " if terminal else f"{line}\n")
        sys.stdout.flush()


def table(report: Report, first: int) -> str:
    """What was run, for people."""
    lines = [
        f"{report.schedules} schedules from seed {first} in {report.seconds:.1f} s: {report.schedules / report.seconds:.0f}/s",
        f"clients were told: {', '.join(f'{count} {kind}' for kind, count in sorted(report.outcomes.items()))}",
        f"reads served: {report.reads}",
        f"profiles: {', '.join(f'{name} {count}' for name, count in sorted(report.profiles.items()))}",
        "",
    ]
    width = max(len(name) for name in report.as_json()["faults_fired"])  # type: ignore[attr-defined]
    lines += [f"{name:{width}}  {count:>9}" for name, count in report.as_json()["faults_fired"].items()]  # type: ignore[attr-defined]
    lines.append("")
    lines += [f"NEVER FIRED: {name}" for name in report.silent]
    for seed, text in report.failures:
        lines += [f"BROKEN {text[:400]}", f"  replay: {replay_command(seed)}"]
    lines.append("no law was broken" if not report.failures else f"{len(report.failures)} schedules broke a law")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
