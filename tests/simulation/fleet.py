"""Many schedules on several processes: what was run, how fast, what was told, and how often each fault fired.

Seeds are dealt out in blocks, so the sum does not depend on how many workers there are. A schedule that breaks a law does not
end the run: its seed and the command that replays it are reported, up to a bound. A kind of fault that never fired is a
failure too.
"""

import gc
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from tests.scenarios.laws import Broken
from tests.simulation.faults import Fault
from tests.simulation.schedule import Schedule

BLOCK = 100
FAILURES_MAX = 20
"""A run that has found so many stops."""
ENOUGH = 5_000
"""Schedules after which every kind of fault must have fired."""


@dataclass(slots=True)
class Report:
    """What became of some schedules."""

    schedules: int = 0
    seconds: float = 0.0
    reads: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    fired: Counter[str] = field(default_factory=Counter)
    profiles: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[int, str]] = field(default_factory=list)

    def add(self, other: "Report") -> None:
        self.schedules += other.schedules
        self.reads += other.reads
        self.outcomes += other.outcomes
        self.fired += other.fired
        self.profiles += other.profiles
        self.failures += other.failures

    @property
    def silent(self) -> list[str]:
        """Kinds of fault that never fired, of a run long enough to expect them."""
        return [fault.value for fault in Fault if not self.fired[fault.value]] if self.schedules >= ENOUGH else []

    @property
    def ok(self) -> bool:
        return not self.failures and not self.silent and self.schedules > 0

    def as_json(self) -> dict[str, object]:
        return {
            "schedules": self.schedules,
            "seconds": round(self.seconds, 1),
            "schedules_per_s": round(self.schedules / max(self.seconds, 1e-9), 1),
            "reads_served": self.reads,
            "told": dict(sorted(self.outcomes.items())),
            "profiles": dict(sorted(self.profiles.items())),
            "faults_fired": {fault.value: self.fired[fault.value] for fault in Fault},
            "never_fired": self.silent,
            "failures": [{"seed": seed, "broken": text, "replay": replay_command(seed)} for seed, text in self.failures],
            "ok": self.ok,
        }


def replay_command(seed: int) -> str:
    return f"python -m tests.simulation.replay --seed {seed}"


def run_block(seeds: Iterable[int]) -> Report:
    """One worker's share. Collections of garbage are made between schedules, not within them."""
    report = Report()
    gc.disable()
    try:
        for number, seed in enumerate(seeds):
            schedule = Schedule(seed)
            try:
                report.outcomes += schedule.run()
            except Broken as broken:
                report.failures.append((seed, str(broken)))
            report.schedules += 1
            report.reads += schedule.served
            report.profiles[schedule.profile.name] += 1
            for fault, count in schedule.fired.items():
                report.fired[fault.value] += count
            del schedule
            if number % 25 == 24:
                gc.collect(1)
    finally:
        gc.enable()
    return report


def run(
    schedules: int,
    *,
    first: int = 0,
    workers: int = 2,
    seconds_max: float | None = None,
    progress: Callable[[Report], None] | None = None,
) -> Report:
    """``schedules`` seeds from ``first`` on, or as many as ``seconds_max`` allows; ``progress`` hears of every block."""
    began = time.monotonic()
    total = Report()
    blocks = [range(at, min(at + BLOCK, first + schedules)) for at in range(first, first + schedules, BLOCK)]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for report in pool.imap_unordered(run_block, blocks):
            total.add(report)
            total.seconds = time.monotonic() - began
            if progress is not None:
                progress(total)
            over = seconds_max is not None and total.seconds > seconds_max
            if over or len(total.failures) >= FAILURES_MAX:
                break
        pool.terminate()
    total.failures.sort()
    return total
