"""``python -m tests.simulation.planted``: hunt for every planted bug, and print the table. Exit code 1 if one survived.

``--only NAME …`` hunts for some; ``--markdown`` prints a table for documents.
"""

import argparse
import json
import sys

from tests.simulation.planted.catalogue import CATALOGUE
from tests.simulation.planted.hunt import Find, hunt_all, named


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.planted", description=__doc__)
    parser.add_argument("--bound", type=int, default=20_000, help="schedules for each mutation (20000)")
    parser.add_argument("--from", dest="first", type=int, default=0, help="the first seed (0)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="processor time for each mutation")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=None, metavar="NAME")
    parser.add_argument("--random-only", action="store_true", help="no directed stories")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    names = options.only or [mutation.name for mutation in CATALOGUE]
    quiet = options.json or options.markdown
    finds = hunt_all(
        names,
        options.bound,
        first=options.first,
        workers=options.workers,
        seconds_max=options.seconds,
        stories=not options.random_only,
        told=None if quiet else lambda find: say(line(find)),
    )
    if options.json:
        rows = [{"name": f.name, "schedules": f.schedules, "seed": f.seed, "story": f.story, "broken": f.broken} for f in finds]
        json.dump(rows, sys.stdout, indent=2)
        sys.stdout.write("\n")
    elif options.markdown:
        sys.stdout.write(markdown(finds))
    survivors = [find.name for find in finds if find.survived]
    if not quiet:
        say(f"{len(finds) - len(survivors)} of {len(finds)} found" + (f"; SURVIVED: {survivors}" if survivors else ""))
    return 1 if survivors else 0


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def line(find: Find) -> str:
    count = "SURVIVED" if find.survived else "found"
    tries = f"story: {find.story}" if find.story else f"{find.schedules:>6} schedules"
    return f"{find.name:40} {count:8} {tries:27} {find.seconds:6.1f} s  {law(find)[:110]}"


def law(find: Find) -> str:
    """The broken law, without its seed and time."""
    return find.broken.partition(": ")[2].removeprefix("Broken: ")


def markdown(finds: list[Find]) -> str:
    rows = ["| mutation | rule | removes | schedules | what was seen |", "|---|---|---|---|---|"]
    for find in finds:
        mutation = named(find.name)
        rule = f"**{mutation.rule}**" if mutation.bold else mutation.rule
        count = (
            f"survived {find.schedules}" if find.survived else f"story “{find.story}”" if find.story else str(find.schedules)
        )
        seen = law(find).replace("|", "/").replace("\n", " ")[:90]
        rows.append(f"| `{find.name}` | {rule} | {mutation.removes} | {count} | {seen} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.exit(main())
