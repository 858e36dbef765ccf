"""A client that speaks HTTP by itself: pushes with packs made in memory, creations, deletions, reads; one ``Operation`` each.

Every request has a connection of its own and is sent once: a library that sent it again would make two operations of one.
What is not understood is ``UNKNOWN``; what is refused in words is taken at its word: if it was a lie, that is found.
"""

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import aiohttp

from tests.cluster.wire import packets, pkt, report_of, request_body
from tests.nemesis.history import History, Kind, Operation, Outcome, Update, Value, refs

TIMEOUT_S = 15.0
"""A client gives up then. Writes are answered within 2.6 s, reads within 5 s, unless the node is paused or gone."""

LOCAL = {"X-Gitquorum-Consistency": "local"}
PUSH_CAPABILITIES = "report-status side-band-64k atomic object-format=sha1 agent=nemesis/1"

_REMARK = re.compile(r"gitquorum: version (\d+) committed on \d+/\d+ \(quorum \d+\) tx (\S+)")
_TRANSACTION = re.compile(r"outcome unknown, transaction (\S+?);")


@dataclass(frozen=True, slots=True)
class Told:
    """What an answer said."""

    outcome: Outcome
    reason: str = ""
    version: int | None = None
    transaction: str | None = None
    value: Value = None


@dataclass
class Recorder:
    """Numbers operations and keeps them; one for all clients of a run."""

    history: History
    began_at: float = field(default_factory=time.monotonic)
    _numbers: "count[int]" = field(default_factory=lambda: count(1))
    odd: list[str] = field(default_factory=list)
    """Answers that no client should get: status 500, and what cannot be parsed."""

    def now(self) -> float:
        return time.monotonic() - self.began_at

    def add(
        self,
        client: str,
        kind: Kind,
        repository: str,
        node: int,
        start: float,
        told: Told,
        via: str,
        updates: Iterable[Update] = (),
    ) -> Operation:
        operation = Operation(
            number=next(self._numbers),
            client=client,
            kind=kind,
            repository=repository,
            node=node,
            start=start,
            end=self.now(),
            outcome=told.outcome,
            updates=tuple(updates),
            value=told.value,
            version=told.version,
            transaction=told.transaction,
            reason=told.reason[:300],
            via=via,
        )
        self.history.add(operation)
        return operation


class Client:
    """``urls``: of the nodes, by number."""

    def __init__(self, name: str, urls: Mapping[int, str], recorder: Recorder) -> None:
        self.name = name
        self._urls = urls
        self._recorder = recorder
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(force_close=True, limit=0), timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)
        )
        # Else a DELETE whose connection breaks is sent again, behind our back; refused then, it would pass for never sent.
        self._session._retry_connection = False

    async def close(self) -> None:
        await self._session.close()

    async def create(self, node: int, repository: str) -> Operation:
        return await self._do(Kind.CREATE, repository, node, "POST", "/repos", _of_rest, json={"repo_id": repository})

    async def delete(self, node: int, repository: str) -> Operation:
        return await self._do(Kind.DELETE, repository, node, "DELETE", f"/repos/{repository}", _of_rest)

    async def push(self, node: int, repository: str, updates: tuple[Update, ...], pack: bytes) -> Operation:
        """All of ``updates`` or none. Without a pack only deletions."""
        body = request_body([(each.old, each.new, each.ref) for each in updates], pack, PUSH_CAPABILITIES, False)
        headers = {"Content-Type": "application/x-git-receive-pack-request"}
        path = f"/{repository}.git/git-receive-pack"
        return await self._do(
            Kind.PUSH, repository, node, "POST", path, _of_push, via="raw", updates=updates, data=body, headers=headers
        )

    async def read(self, node: int, repository: str, *, raw: bool = False, local: bool = False) -> Operation:
        """The whole ref table: by REST, or as git asks for it (``raw``)."""
        kind, headers = (Kind.LOCAL_READ, LOCAL) if local else (Kind.READ, {})
        if not raw:
            path = f"/repos/{repository}/refs?limit=1000"
            return await self._do(kind, repository, node, "GET", path, _of_refs, headers=headers)
        return await self._do(
            kind,
            repository,
            node,
            "POST",
            f"/{repository}.git/git-upload-pack",
            _of_ls_refs,
            via="raw",
            data=pkt(b"command=ls-refs\n") + pkt(b"object-format=sha1") + b"0001" + b"0000",
            headers={"Content-Type": "application/x-git-upload-pack-request", "Git-Protocol": "version=2", **headers},
        )

    async def _do(
        self,
        kind: Kind,
        repository: str,
        node: int,
        method: str,
        path: str,
        understand: Callable[[int, Mapping[str, str], bytes], Told],
        *,
        via: str = "rest",
        updates: tuple[Update, ...] = (),
        **request: Any,
    ) -> Operation:
        start = self._recorder.now()
        try:
            async with self._session.request(method, self._urls[node] + path, **request) as answer:
                data = await answer.read()
                told = understand(answer.status, answer.headers, data)
                if answer.status == 500:
                    self._recorder.odd.append(f"node-{node} {method} {path}: {data[:300]!r}")
        except aiohttp.ClientConnectorError as error:
            told = Told(Outcome.UNSENT, str(error))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            told = Told(Outcome.UNKNOWN, f"{type(error).__name__}: {error}")
        except (AssertionError, ValueError, KeyError) as error:
            told = Told(Outcome.UNKNOWN, f"not understood: {error!r}")
            self._recorder.odd.append(f"node-{node} {method} {path}: {error!r}")
        return self._recorder.add(self.name, kind, repository, node, start, told, via, updates)


def _refused(status: int, data: bytes) -> Told:
    """A problem document. Storage that fails, and faults of the server, say nothing about what was done."""
    try:
        document = json.loads(data)
    except ValueError:
        return Told(Outcome.UNKNOWN, f"{status} {data[:200]!r}")
    kind = str(document.get("type", "")).rpartition("/")[2]
    reason = f"{status} {kind}: {document.get('detail', '')}"
    if kind == "quorum-not-reached":
        return Told(Outcome.ABORTED, reason, transaction=document.get("transaction_id"))
    if status >= 500 and kind not in ("not-ready", "busy", "read-unavailable"):
        return Told(Outcome.UNKNOWN, reason)
    return Told(Outcome.REJECTED, reason)


def _of_rest(status: int, headers: Mapping[str, str], data: bytes) -> Told:
    if status in (200, 201):
        body = json.loads(data)
        return Told(Outcome.COMMITTED, "", body["version"], body["transaction_id"])
    if status == 202:
        return Told(Outcome.UNKNOWN, "202", transaction=json.loads(data)["transaction_id"])
    return _refused(status, data)


def _of_push(status: int, headers: Mapping[str, str], data: bytes) -> Told:
    if status != 200:
        return _refused(status, data)
    report = report_of(data)
    reasons = sorted({reason for reason in report.refs.values() if reason != "ok"})
    if not reasons:
        return told_committed(report.remote)
    return told_refused(" | ".join([*reasons, *([report.unpack] if report.unpack != "ok" else [])]))


def told_committed(remote: str) -> Told:
    found = _REMARK.search(remote)
    return Told(Outcome.COMMITTED, "", int(found[1]), found[2]) if found else Told(Outcome.COMMITTED, "no remark")


def told_refused(reason: str) -> Told:
    """``ng``: the words that git shows."""
    if "outcome unknown" in reason:
        found = _TRANSACTION.search(reason)
        return Told(Outcome.UNKNOWN, reason, transaction=found[1] if found else None)
    if "quorum not reach" in reason:
        return Told(Outcome.ABORTED, reason)
    return Told(Outcome.REJECTED, reason)


def _of_refs(status: int, headers: Mapping[str, str], data: bytes) -> Told:
    if status != 200:
        return _not_read(status, data)
    body = json.loads(data)
    assert body["next"] is None, "a ref table of one page"
    assert body["version"] == int(headers["X-Gitquorum-Version"])
    return Told(Outcome.COMMITTED, "", body["version"], value=refs((each["name"], each["oid"]) for each in body["refs"]))


def _of_ls_refs(status: int, headers: Mapping[str, str], data: bytes) -> Told:
    if status != 200:
        return _not_read(status, data)
    pairs = (line.decode().split()[:2] for line in packets(data))
    value = refs((ref, oid) for oid, ref in pairs if ref != "HEAD")
    return Told(Outcome.COMMITTED, "", int(headers["X-Gitquorum-Version"]), value=value)


def _not_read(status: int, data: bytes) -> Told:
    """404 for what does not exist is an answer; everything else is none."""
    told = _refused(status, data)
    if status == 404 and "repository-absent" in told.reason:
        return Told(Outcome.COMMITTED, told.reason)
    return told
