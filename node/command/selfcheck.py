"""Prove that the cluster works, with stock git: push one commit to one node, clone from another, compare.

The repository ``gitquorum/selfcheck`` stays; each run adds one commit to what is there. Git runs without the user's
configuration, credentials and proxies, so that what fails is the cluster.
"""

import os
import subprocess
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from node.command.client import NodeSilent, refuse, request
from node.command.output import CommandError, Exit, Output
from node.command.repos import clone_url
from node.command.state import Home, NodePlace
from node.command.up import why_not_ready

REPOSITORY = "gitquorum/selfcheck"
GIT_TIMEOUT_S = 30.0


def selfcheck(home: Home, output: Output) -> dict[str, Any]:
    """Create (if need be), push, clone elsewhere, compare; returns what was seen.

    Raises:
        CommandError: with the step that failed and git's last words.
    """
    ready = [node for node in home.load().nodes if why_not_ready(node) is None]
    if not ready:
        raise CommandError("no node is ready to write; look at: gitquorum status", Exit.UNAVAILABLE)
    through, other = ready[0], ready[-1]
    _ensure_repository(through)
    with tempfile.TemporaryDirectory(prefix="gitquorum-selfcheck-") as folder:
        seen = _push_and_clone(Path(folder), through, other)
    output.progress(f"pushed {seen['oid'][:12]} to {through.id} in {seen['push_ms']:.0f} ms:")
    for line in seen["remote"]:
        output.progress(f"  remote: {line}")
    output.progress(f"cloned from {other.id}: the same commit, git fsck --strict is content")
    return {"ok": True, "repository": REPOSITORY, "pushed_to": through.id, "cloned_from": other.id, **seen}


def _ensure_repository(node: NodePlace) -> None:
    try:
        answer = request(node.url, "POST", "/repos", body={"repo_id": REPOSITORY})
    except NodeSilent as error:
        raise CommandError(str(error), Exit.UNAVAILABLE) from error
    if answer.status == 202:
        raise CommandError(f"whether {REPOSITORY} was created is not known yet; try again", Exit.UNKNOWN)
    if not answer.ok and answer.status != 409:
        raise refuse(answer, f"{REPOSITORY} was not created")


def _push_and_clone(folder: Path, through: NodePlace, other: NodePlace) -> dict[str, Any]:
    work = folder / "work"
    run_git(folder, "clone", "--quiet", clone_url(through.url, REPOSITORY), str(work))
    now = datetime.now(UTC).isoformat(timespec="microseconds")
    (work / "selfcheck.txt").write_text(f"{now} through {through.id}\n")
    run_git(work, "add", "selfcheck.txt")
    run_git(work, "commit", "--quiet", "--message", f"self-check {now}")
    oid = run_git(work, "rev-parse", "HEAD").stdout.strip()
    began = time.monotonic()
    pushed = run_git(work, "push", "origin", "HEAD:refs/heads/main")
    push_ms = (time.monotonic() - began) * 1000
    run_git(folder, "clone", "--quiet", "--branch", "main", clone_url(other.url, REPOSITORY), str(folder / "copy"))
    got = run_git(folder / "copy", "rev-parse", "HEAD").stdout.strip()
    if got != oid:
        raise CommandError(f"pushed {oid} to {through.id}, but {other.id} served {got}: please report this")
    run_git(folder / "copy", "fsck", "--strict", "--full", "--no-progress")
    remote = [line.removeprefix("remote:").strip() for line in pushed.stderr.splitlines() if line.startswith("remote:")]
    return {"oid": oid, "push_ms": round(push_ms, 1), "remote": [line for line in remote if line]}


def git_environment(home: Path) -> dict[str, str]:
    """Git as if nobody had configured it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        kept.pop(name, None)
    who = {f"GIT_{role}_{what}": value for role in ("AUTHOR", "COMMITTER") for what, value in _IDENTITY.items()}
    return kept | who | {"HOME": str(home), "GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}


_IDENTITY = {"NAME": "gitquorum", "EMAIL": "selfcheck@gitquorum.invalid"}


def run_git(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        done = subprocess.run(
            ["git", "-c", "init.defaultBranch=main", "-c", "gc.auto=0", *arguments],
            cwd=folder,
            env=git_environment(folder),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=GIT_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise CommandError("git is not installed; run: apt-get install git") from error
    except subprocess.TimeoutExpired as error:
        raise CommandError(f"git {_word(arguments)} did not finish within {GIT_TIMEOUT_S:.0f} s") from error
    if done.returncode != 0:
        lines = [line for line in (done.stderr or done.stdout).strip().splitlines() if line.strip()]
        raise CommandError(f"git {_word(arguments)} failed: {' | '.join(lines[-3:]) or 'no reason given'}")
    return done


def _word(arguments: tuple[str, ...]) -> str:
    """The command's name, behind any ``-c name=value``."""
    return arguments[2] if arguments[0] == "-c" else arguments[0]
