"""A console transcript in a Markdown page, as a test: its commands are run, what they print is compared with the page's words.

    ```console
    $ gitquorum kill node-3
    node-3: killed (pid 2144)
    ```

``steps`` reads the ``console`` blocks, ``Shell`` is the one bash in which all commands run, ``Comparer`` compares. In the page,
``…`` alone on a line stands for any lines, ``…`` inside a line for any piece of it. Everything else is meant word for word,
but for ``VARYING``, each of which may differ but must be there and of the same kind. A transaction id that the page names twice
is the same one twice: where a command of the page names one, the id that was really seen is put in its place, as a reader
would type it.

Two things hold whatever the page says. A command exits with 0, unless one of the lines below it has ``error:`` or ``rejected``:
then it must not. And no ``…`` stands for a line with ``Traceback`` or for one that begins with ``warning:`` or ``error:``: what
a reader would stumble over is written in the page, or is not there.

Known tools were looked at and do not fit: cram and prysk want ``.t`` files, scrut is no Python package, clitest and byexample
cannot put what they saw into a later command, the pytest plugins for Markdown run Python.
"""

import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex

ANYTHING = "…"

TRANSACTION = re.compile(r"\b\d{8}-[0-9a-f]{20}\b")

VARYING: dict[str, str] = {
    "transaction id": TRANSACTION.pattern,
    "date": r"\b\d{4}-\d\d-\d\dT[\d:.]+Z",
    "object name": r"\b(?=[a-f]*\d)[0-9a-f]{7,64}\b",
    "process id": r"(?<=pid )\d+",
    "port of the broker": r"(?<=\b127\.0\.0\.1:)(?!300[123]\b)\d+",
    "duration": r"\b\d+(?:\.\d+)?(?= m?s\b)",
    "temporary folder": r"/tmp/[\w./-]+",
    "answers in time": r"(?<=committed on )3(?=/3 )",
}
"""What may differ, by name, and what it looks like. Nodes have ports 3001 to 3003 on both sides when they are compared."""

_SEEN_INSTEAD = {
    "object name": r"\b[0-9a-f]{7,64}\b",  # one in a thousand has no digit
    "temporary folder": r"/[\w./-]+",
    "answers in time": "[23]",  # a node that is slow to answer is not waited for: still a quorum, of three
}
"""Where what is seen may look different from what the page says."""

_VARYING = re.compile("|".join(f"(?P<v{number}>{pattern})" for number, pattern in enumerate(VARYING.values())))


_FAILS = re.compile("error:|rejected")
_QUIET = r"(?!.*Traceback|\s*(?:warning|error):)"
"""Before a line that ``…`` may stand for."""


@dataclass(frozen=True, slots=True)
class Step:
    """A command and the lines below it."""

    command: str
    words: tuple[str, ...]
    line: int


def steps(page: str) -> list[Step]:
    """Of all ``console`` blocks, in order; a block's first line is a command."""
    found: list[Step] = []
    inside = False
    for number, line in enumerate(page.splitlines(), 1):
        if line.startswith("```"):
            inside = not inside and line == "```console"
        elif inside and line.startswith("$ "):
            found.append(Step(line[2:], (), number))
        elif inside:
            assert found, f"line {number}: a block begins with a command"
            found[-1] = Step(found[-1].command, (*found[-1].words, line), found[-1].line)
    return found


@dataclass(frozen=True, slots=True)
class Ended:
    """A command that was run: what it printed on both outputs, in order, and how it exited."""

    output: str
    code: int


@dataclass
class Comparer:
    """What the page says against what was seen; remembers which transaction is which."""

    ports: Mapping[str, str] = field(default_factory=dict)
    """Port of a node in the page → the one it really has."""
    transactions: dict[str, str] = field(default_factory=dict)
    """Transaction id in the page → the one that was seen there."""

    def command(self, step: Step) -> str:
        """As it is run."""
        typed = TRANSACTION.sub(lambda found: self.transactions.get(found[0], found[0]), step.command)
        return _replaced(typed, self.ports)

    def check(self, step: Step, ended: Ended) -> None:
        """Raises ``AssertionError`` that shows command, words of the page, and words seen."""
        seen = _lines(_replaced(ended.output, {real: page for page, real in self.ports.items()}))
        words = _lines("\n".join(step.words))
        pattern, names = self._pattern(words)
        found = re.fullmatch(pattern, "".join(f"{line}\n" for line in seen))
        told = (
            f"line {step.line} of the page\n$ {step.command}\n--- the page says:\n{_block(words)}\n--- seen:\n{_block(seen)}\n"
        )
        assert found, told
        fails = any(_FAILS.search(line) for line in words)
        assert (ended.code != 0) == fails, f"{told}--- exit code {ended.code}, and the page says that it {_exits(fails)}\n"
        self.transactions.update({name: found[group] for name, group in names.items()})

    def _pattern(self, words: list[str]) -> tuple[str, dict[str, str]]:
        """(a regular expression for the lines, transaction id of the page → the group that catches it)."""
        parts: list[str] = []
        names: dict[str, str] = {}
        for line in words:
            parts.append(rf"(?:{_QUIET}.*\n)*?" if line == ANYTHING else self._line(line, names) + r"\n")
        return "".join(parts), names

    def _line(self, line: str, names: dict[str, str]) -> str:
        parts: list[str] = []
        at = 0
        if line.lstrip().startswith(ANYTHING):
            parts.append(_QUIET)
        elif ANYTHING in line and "Traceback" not in line:
            parts.append("(?!.*Traceback)")
        for found in _VARYING.finditer(line):
            parts += [_literal(line[at : found.start()]), self._varying(found, names)]
            at = found.end()
        return "".join([*parts, _literal(line[at:])])

    def _varying(self, found: re.Match[str], names: dict[str, str]) -> str:
        kind, pattern = list(VARYING.items())[int(str(found.lastgroup)[1:])]
        if kind != "transaction id":
            return _SEEN_INSTEAD.get(kind, pattern)
        if found[0] in self.transactions:
            return re.escape(self.transactions[found[0]])
        if found[0] in names:
            return f"(?P={names[found[0]]})"
        names[found[0]] = f"t{len(names)}"
        return f"(?P<{names[found[0]]}>{pattern})"


def _exits(fails: bool) -> str:
    return "fails" if fails else "does not fail"


def _literal(text: str) -> str:
    """Word for word, but for ``…``; how wide the gaps between a table's columns are follows from what varies in it."""
    parts = [re.escape(part) for part in text.split(ANYTHING)]
    return re.sub(r"(?:\\ ){2,}", " {2,}", ".*?".join(parts))


def _lines(text: str) -> list[str]:
    """Without what nobody sees: blanks at the ends of lines, empty lines at the end."""
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _block(lines: list[str]) -> str:
    return "\n".join(lines) or "(nothing)"


def _replaced(text: str, by: Mapping[str, str]) -> str:
    return re.sub(r"\b\d{4,5}\b", lambda found: by.get(found[0], found[0]), text)


class Shell:
    """One bash for all commands, so that ``cd`` and ``export`` last; no terminal, nothing to read from."""

    def __init__(self, cwd: Path, env: Mapping[str, str]) -> None:
        self._bash = subprocess.Popen(
            ["bash", "--norc", "--noprofile"],
            cwd=cwd,
            env=dict(env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def run(self, command: str, timeout_s: float) -> Ended:
        """Run it to its end.

        Raises:
            AssertionError: the shell ended, or the command did not within ``timeout_s``.
        """
        assert self._bash.stdin is not None
        mark = f"--- {token_hex(8)}"
        self._bash.stdin.write(f"{{ {command}\n}} </dev/null\nprintf '%s %d\\n' '{mark}' $?\n".encode())
        self._bash.stdin.flush()
        return self._read_until(re.compile(rb"%s (\d+)\n\Z" % mark.encode()), command, time.monotonic() + timeout_s)

    def _read_until(self, end: re.Pattern[bytes], command: str, give_up_at: float) -> Ended:
        assert self._bash.stdout is not None
        output = b""
        while (found := end.search(output)) is None:
            ready, _, _ = select.select([self._bash.stdout], [], [], max(0.0, give_up_at - time.monotonic()))
            assert ready, f"$ {command}\ndid not end in time; until then it printed:\n{output.decode()}"
            read = os.read(self._bash.stdout.fileno(), 65536)
            assert read, f"$ {command}\nended the shell; it printed:\n{output.decode()}"
            output += read
        return Ended(output[: found.start()].decode(), int(found[1]))

    def close(self) -> None:
        """Ends bash and what it still runs in the foreground; what was detached on purpose goes on."""
        if self._bash.poll() is None:
            os.killpg(self._bash.pid, signal.SIGKILL)
        self._bash.wait(timeout=10)
        for pipe in (self._bash.stdin, self._bash.stdout):
            if pipe is not None:
                pipe.close()
