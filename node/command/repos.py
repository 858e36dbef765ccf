"""``gitquorum repo create | list | show | delete``: the REST API from the command line.

A write's answer is one of the three outcomes, and the exit code says which: 0 committed, 4 aborted (certain: try again),
5 unknown (being settled: ask ``gitquorum tx show``). A write whose answer never came is unknown, too.
"""

import re
import secrets
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from node.command.client import Answer, NodeSilent, get, refuse, request
from node.command.output import CommandError, Exit, Output, facts, table
from node.protocol.names import BadRepositoryName, RepositoryName

PAGE = 100
LIST_MAX = 10_000


def create(url: str, name: str, output: Output) -> dict[str, Any]:
    """``POST /repos``."""
    repository = _name(name)
    answer = _write(url, "POST", "/repos", name, {"repo_id": str(repository)})
    if answer.status == 409:
        raise CommandError(f"{name} exists already")
    body = _settled(answer, f"{name} was not created")
    output.result(body, f"created {name}: {_where(body)}\nclone it with: git clone {clone_url(url, name)}")
    return body


def delete(url: str, name: str, output: Output, confirm: Callable[[str], bool]) -> dict[str, Any]:
    """``DELETE /repos/…``, after asking."""
    repository = _name(name)
    found = get(url, _path(repository))
    if not found.ok:
        raise refuse(found, name)
    if not confirm(f"Delete {name} (version {found.body.get('version')}) on every node?"):
        raise CommandError(f"{name} was not deleted")
    body = _settled(_write(url, "DELETE", _path(repository), name, None), f"{name} was not deleted")
    output.result(body, f"deleted {name}: {_where(body)}")
    return body


def show(url: str, name: str, output: Output) -> dict[str, Any]:
    """What a repository is, and where each replica stands."""
    repository = _name(name)
    found = get(url, _path(repository))
    if not found.ok:
        raise refuse(found, name)
    replicas = get(url, _path(repository) + "/replicas", local=True)
    body = {**found.body, "replicas": replicas.body.get("replicas", []) if replicas.ok else []}
    rows = [
        (each.get("node_id"), each.get("state"), each.get("version"), each.get("applied"), each.get("digest"))
        for each in body["replicas"]
    ]
    plain = {key: value for key, value in found.body.items() if not isinstance(value, dict | list)}
    if not output.as_json:
        output.result(body, facts(plain))
        output.result(body, table(("node", "state", "version", "applied", "digest"), rows))
    else:
        output.result(body)
    return body


def show_list(url: str, output: Output) -> list[dict[str, Any]]:
    """Every repository, up to ``LIST_MAX``."""
    found, more = list_repos(url, LIST_MAX)
    output.result(found, table(("repository", "version", "head"), [_row(repo) for repo in found]))
    if more:
        output.warning(f"only the first {LIST_MAX} are shown")
    return found


def list_repos(url: str, count_max: int) -> tuple[list[dict[str, Any]], bool]:
    """(repositories, whether there are more than ``count_max``), following ``Link: rel="next"``.

    Raises:
        NodeSilent: if the node stops answering.
        CommandError: if it refuses.
    """
    found: list[dict[str, Any]] = []
    path: str | None = f"/repos?limit={min(PAGE, count_max)}"
    while path is not None and len(found) < count_max:
        answer = get(url, path)
        if not answer.ok:
            raise refuse(answer, "repositories cannot be listed")
        found += answer.body.get("repositories", [])
        path = next_page(answer.link)
    return found[:count_max], path is not None or len(found) > count_max


def next_page(link: str | None) -> str | None:
    """Path and query of ``rel="next"`` (RFC 8288), whatever host it names."""
    for target, parameters in re.findall(r"<([^>]*)>([^,<]*)", link or ""):
        if re.search(r';\s*rel="?next"?\s*(;|$)', parameters.strip()):
            return "/" + re.sub(r"^https?://[^/]*", "", target).lstrip("/")
    return None


def clone_url(url: str, name: str) -> str:
    return f"{url}/{name}.git"


def _name(text: str) -> RepositoryName:
    try:
        return RepositoryName.parse(text)
    except BadRepositoryName as error:
        raise CommandError(f"{text!r}: {error}", Exit.USAGE) from error


def _path(repository: RepositoryName) -> str:
    return f"/repos/{quote(repository.owner)}/{quote(repository.name)}"


def _write(url: str, method: str, path: str, name: str, body: dict[str, Any] | None) -> Answer:
    """The key makes a repeated request harmless, should anything between here and the node repeat it."""
    try:
        return request(url, method, path, body=body, headers={"Idempotency-Key": secrets.token_hex(16)})
    except NodeSilent as error:
        if not error.sent:
            raise CommandError(str(error), Exit.UNAVAILABLE) from error
        raise CommandError(f"outcome unknown: {error}; look with: gitquorum repo show {name}", Exit.UNKNOWN) from error


def _settled(answer: Answer, failed: str) -> dict[str, Any]:
    body: dict[str, Any] = answer.body if isinstance(answer.body, dict) else {}
    if answer.status == 202:
        txn = body.get("transaction_id") or (answer.location or "").rsplit("/", 1)[-1]
        raise CommandError(f"outcome unknown, it is being settled; ask: gitquorum tx show {txn}", Exit.UNKNOWN)
    if not answer.ok:
        raise refuse(answer, failed)
    return body


def _where(body: dict[str, Any]) -> str:
    on = body.get("committed_on")
    nodes = f" on {', '.join(on)}" if isinstance(on, list) else ""
    return f"version {body.get('version')}{nodes} (quorum {body.get('quorum')}), transaction {body.get('transaction_id')}"


def _row(repo: dict[str, Any]) -> tuple[Any, ...]:
    return repo.get("repo_id"), repo.get("version"), repo.get("head")
