"""The comparer of tests/transcript.py: what it must let pass, and above all what it must not."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.transcript import Comparer, Ended, Shell, Step, steps

PAGE = """\
# A page
```
$ not run
```
```console
$ first
one
…
three
$ second && third   # a remark
```
text
```console
$ fourth
```
"""

ID_1, ID_2, ID_3 = (f"20260101-{number:020x}" for number in (1, 2, 3))


def matches(words: str, seen: str, comparer: Comparer | None = None, code: int = 0) -> bool:
    try:
        (comparer or Comparer()).check(Step("command", tuple(words.splitlines()), 1), Ended(seen, code))
    except AssertionError:
        return False
    return True


def test_steps_are_the_commands_of_console_blocks_with_the_lines_below_them() -> None:
    assert steps(PAGE) == [
        Step("first", ("one", "…", "three"), 6),
        Step("second && third   # a remark", (), 10),
        Step("fourth", (), 14),
    ]


def test_a_block_that_does_not_begin_with_a_command_is_refused() -> None:
    with pytest.raises(AssertionError, match="line 2"):
        steps("```console\nwords\n```")


def test_the_same_words_match() -> None:
    assert matches("one\ntwo", "one\ntwo\n")
    assert matches("", "")
    assert matches("remote: yes", "remote: yes        \n"), "git pads its lines"


@pytest.mark.parametrize(
    "seen",
    [
        "node-3: killed\n",
        "node-3: killed\nleft: 3 of 3\n",
        "node-3: killed\nleft: 2 of 3\nmore\n",
        "warning\nnode-3: killed\nleft: 2 of 3\n",
        "node-3: Killed\nleft: 2 of 3\n",
        "left: 2 of 3\nnode-3: killed\n",
        "node-3: killed left: 2 of 3\n",
        "node-3:  killed\nleft: 2 of 3\n",
        "\nnode-3: killed\nleft: 2 of 3\n",
        "",
    ],
    ids=["missing line", "number", "line more", "line before", "case", "order", "joined", "blank", "empty line", "nothing"],
)
def test_changed_words_do_not_match(seen: str) -> None:
    assert matches("node-3: killed\nleft: 2 of 3", "node-3: killed\nleft: 2 of 3\n")
    assert not matches("node-3: killed\nleft: 2 of 3", seen)


def test_words_where_the_page_has_none_do_not_match() -> None:
    assert not matches("", "error: something\n")


def test_dots_stand_for_lines_or_for_a_piece_of_one_line() -> None:
    assert matches("…\nend", "end\n")
    assert matches("…\nend", "a\nb\nend\n")
    assert matches("a … z", "a lot of words z\n")
    assert not matches("a … z", "a\nz\n")
    assert not matches("…\nend", "a\nthe end\n")
    assert not matches("…\nend", "end\nb\n")


@pytest.mark.parametrize(
    "loud",
    [
        "warning: something",
        "error: something",
        "  error: something",
        "Traceback (most recent call last):",
        "remote: Traceback (most recent call last):",
    ],
)
def test_dots_never_stand_for_a_warning_an_error_or_a_traceback(loud: str) -> None:
    assert matches("a\n…\nend", "a\nwords\nend\n")
    for words in ("…\nend", "…\n…\nend", "… something\nend", "… (most recent …\nend", "…:\nend"):
        assert not matches(words, f"{loud}\nend\n"), words
    assert not matches("…\nend", f"before\n{loud}\nafter\nend\n")
    assert not matches("remote: … last):", f"{loud}\n")


def test_a_warning_an_error_or_a_traceback_that_the_page_names_may_be_there() -> None:
    assert matches("warning: … empty …\n…\nend", "warning: an empty thing\nend\n")
    assert matches("error: …", "error: something\n", code=1)
    assert matches("Traceback (most", "Traceback (most\n")
    assert matches("…\nend", "no warning: none\nno errors\nend\n"), "a line that does not begin so"


@pytest.mark.parametrize("words", ["error: no", "hint\n ! [remote rejected] main"])
def test_a_command_must_exit_with_0_unless_the_page_says_that_it_fails(words: str) -> None:
    assert matches("done", "done", code=0)
    assert not matches("done", "done", code=1)
    assert not matches("…", "done", code=128)
    assert matches(words, words, code=1)
    assert not matches(words, words, code=0)
    assert not matches("…", words, code=1), "what is only seen does not excuse it"


def test_a_wrong_exit_code_is_told() -> None:
    with pytest.raises(AssertionError, match="exit code 3, and the page says that it does not fail"):
        Comparer().check(Step("command", ("done",), 1), Ended("done\n", 3))


@pytest.mark.parametrize(
    ("words", "good", "bad"),
    [
        ("version 2 tx " + ID_1, "version 2 tx " + ID_2, "version 3 tx " + ID_2),
        ("pushed e9a1f02f4a7b to node-1", "pushed 00ff02f4a7b1 to node-1", "pushed nothing to node-1"),
        ("   1a2b3c4..5d6e7f8  HEAD -> main", "   9a2b3c4..0d6e7f8  HEAD -> main", " ! 9a2b3c4..0d6e7f8  HEAD -> main"),
        ("killed (pid 17)", "killed (pid 23456)", "killed (pid -)"),
        ("at 127.0.0.1:48261)", "at 127.0.0.1:5672)", "at 127.0.0.2:5672)"),
        ("http://127.0.0.1:3001/", "http://127.0.0.1:3001/", "http://127.0.0.1:3002/"),
        ("ready after 5.3 s", "ready after 12.1 s", "ready after 12.1 ms"),
        ("in 129 ms:", "in 7 ms:", "in ms:"),
        ("within 2 deadlines", "within 2 deadlines", "within 3 deadlines"),
        ("log in /tmp/a.b/log", "log in /home/x/log", "log in nowhere"),
        ("at 2026-11-26T11:59:25.5Z", "at 2027-01-01T00:00:00Z", "at noon"),
        ("committed on 3/3 (quorum 2)", "committed on 2/3 (quorum 2)", "committed on 1/3 (quorum 2)"),
        ("committed on 2/3 (quorum 2)", "committed on 2/3 (quorum 2)", "committed on 3/3 (quorum 2)"),
        ("node-1  http://h  17  ready", "node-1  http://h    17  ready", "node-1  http://h 17  ready"),
    ],
)
def test_what_varies_must_be_there_and_of_its_kind(words: str, good: str, bad: str) -> None:
    assert matches(words, good)
    assert not matches(words, bad)


def test_a_transaction_is_the_same_wherever_the_page_names_it() -> None:
    comparer = Comparer()
    assert matches(f"tx {ID_1}", f"tx {ID_2}", comparer)
    assert comparer.command(Step(f"tx show {ID_1}", (), 1)) == f"tx show {ID_2}"
    assert matches(f"about {ID_1}", f"about {ID_2}", comparer)
    assert not matches(f"about {ID_1}", f"about {ID_3}", comparer)
    assert not matches(f"{ID_3} {ID_3}", f"{ID_1} {ID_2}")


def test_ports_of_nodes_are_the_pages_in_output_and_the_real_ones_in_commands() -> None:
    comparer = Comparer({"3001": "41001", "3002": "41002"})
    assert comparer.command(Step("git clone http://127.0.0.1:3002/a.git", (), 1)) == "git clone http://127.0.0.1:41002/a.git"
    assert matches("To http://127.0.0.1:3001/a.git", "To http://127.0.0.1:41001/a.git", comparer)
    assert not matches("To http://127.0.0.1:3001/a.git", "To http://127.0.0.1:41002/a.git", comparer)


def test_a_failure_shows_command_page_and_what_was_seen() -> None:
    with pytest.raises(AssertionError) as failure:
        Comparer().check(Step("gitquorum status", ("ready",), 42), Ended("down\n", 0))
    told = str(failure.value)
    assert "line 42" in told
    assert "$ gitquorum status" in told
    assert "the page says:\nready" in told
    assert "seen:\ndown" in told


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path, {"PATH": "/usr/bin:/bin"})
    yield shell
    shell.close()


def test_a_shell_keeps_folder_and_environment_and_both_outputs_in_order(shell: Shell, tmp_path: Path) -> None:
    assert shell.run("mkdir x && cd x && export A=1   # a remark", 10) == Ended("", 0)
    assert shell.run('pwd; echo "$A" >&2; printf end', 10) == Ended(f"{tmp_path / 'x'}\n1\nend", 0)
    assert shell.run("cat", 10) == Ended("", 0), "there is nothing to read"


def test_a_shell_tells_how_each_command_exited(shell: Shell) -> None:
    assert shell.run("false", 10) == Ended("", 1)
    assert shell.run("echo 7; (exit 130)   # a remark", 10) == Ended("7\n", 130)
    assert shell.run("false && true", 10).code == 1
    assert shell.run("true", 10) == Ended("", 0)


def test_a_command_that_does_not_end_fails_with_what_it_printed(shell: Shell) -> None:
    with pytest.raises(AssertionError, match=r"did not end in time(.|\n)*begun"):
        shell.run("echo begun; sleep 60", 0.5)


def test_a_command_that_ends_the_shell_fails(shell: Shell) -> None:
    with pytest.raises(AssertionError, match="ended the shell"):
        shell.run("exit 3", 10)
