"""How a command speaks: progress on stderr, its result on stdout (JSON if asked), one line per error, and an exit code.

Scripts may rely on the exit codes (``docs/command.md``) and on the JSON; the text for people may change.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

PIPE_WIDTH = 400


class Exit(IntEnum):
    """What the process returns."""

    OK = 0
    """Done, or already so."""
    FAILED = 1
    """Not done, for the reason said."""
    USAGE = 2
    """The command line makes no sense, or does not fit the cluster that is there."""
    NOT_FOUND = 3
    """No such node, repository or transaction."""
    UNAVAILABLE = 4
    """No node answers, or the quorum was not reached: certainly not done, a retry is safe."""
    UNKNOWN = 5
    """Sent, but the outcome is not known yet; ask for the transaction."""


class CommandError(Exception):
    """Ends a command with one clear line that says what to do."""

    def __init__(self, message: str, code: Exit = Exit.FAILED) -> None:
        super().__init__(message)
        self.code = code


class Output:
    """Where a command's words go. ``as_json``: the result is one JSON document on stdout."""

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json
        self._err = Console(stderr=True, highlight=False, soft_wrap=True)
        # A pipe has no width; one line per row there, whatever its length, so that grep works.
        self._out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else PIPE_WIDTH)

    def progress(self, line: str) -> None:
        """Something a person wants to see while waiting."""
        self._err.print(Text(line))

    def warning(self, line: str) -> None:
        self._err.print(Text(line, style="yellow"))

    @contextmanager
    def waiting(self, line: str) -> Iterator[None]:
        """A spinner on a terminal, a plain line elsewhere."""
        if not self._err.is_terminal:
            self.progress(line)
            yield
            return
        with self._err.status(Text(line)):
            yield

    def result(self, data: Any, human: RenderableType | None = None) -> None:
        """``data`` as JSON if that was asked for, else ``human`` (nothing if there is none)."""
        if self.as_json:
            sys.stdout.write(json.dumps(data, indent=2) + "\n")
            sys.stdout.flush()
        elif human is not None:
            self._out.print(human)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """A plain table: no frame, readable when piped."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*(Text("–" if cell is None or cell == "" else str(cell)) for cell in row))
    return made


def facts(pairs: Mapping[str, object]) -> Table:
    """Name and value, one pair a line."""
    made = Table(box=None, pad_edge=False, show_header=False)
    made.add_column(style="bold")
    made.add_column(overflow="fold")
    for name, value in pairs.items():
        made.add_row(Text(name), Text("–" if value is None or value == "" else str(value)))
    return made
