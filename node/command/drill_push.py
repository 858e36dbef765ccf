"""One small push as a client makes it: a commit of one file, its pack, one request by smart HTTP, and what the answer means.

By hand and not by ``git push``: what became of a push must be told apart exactly (acknowledged, refused, unknown), its
transaction be known, and a process per push would measure the machine instead of the cluster. Stock git has its say at the
end of a drill (``drill_proof``).
"""

import re
import time
from dataclasses import dataclass
from enum import Enum
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from io import BytesIO
from urllib.parse import urlsplit

from dulwich.object_format import DEFAULT_OBJECT_FORMAT
from dulwich.objects import Blob, Commit, Tree
from dulwich.pack import write_pack_objects

from api.pkt import FLUSH_PKT, pkt

ZERO = "0" * 40
CAPABILITIES = "report-status side-band-64k object-format=sha1 agent=gitquorum-drill"
ANSWER_BYTES_MAX = 1024 * 1024
_TXN = re.compile(r"\b(?:tx|transaction) ([0-9A-Za-z][0-9A-Za-z._-]*)")
_WHO = b"gitquorum <drill@gitquorum.invalid>"


class Fate(Enum):
    """What a client knows of its push when it has its answer, or knows that none will come."""

    ACKNOWLEDGED = "acknowledged"
    """It may never be lost from now on."""
    UNKNOWN = "unknown"
    """Said by the node, or the connection was cut after the request was sent: it may yet appear."""
    REFUSED = "refused"
    """Certain: it will never appear."""
    UNREACHABLE = "unreachable"
    """No connection; nothing was sent."""


@dataclass(frozen=True, slots=True)
class Pushed:
    """One push. Times are of ``time.monotonic``."""

    node: str
    ref: str
    old: str
    new: str
    began_at: float
    ended_at: float
    fate: Fate
    txn: str = ""
    reason: str = ""

    @property
    def took_s(self) -> float:
        return self.ended_at - self.began_at


def commit(parent: str, text: str) -> tuple[str, bytes]:
    """(name, pack) of a commit on ``parent`` (``ZERO``: none) that holds one file of ``text``; three objects."""
    blob = Blob.from_string(text.encode())
    tree = Tree()
    tree.add(b"drill.txt", 0o100644, blob.id)
    made = Commit()
    made.tree = tree.id
    made.parents = [] if parent == ZERO else [parent.encode()]  # type: ignore[list-item]
    made.author = made.committer = _WHO
    made.author_time = made.commit_time = int(time.time())
    made.author_timezone = made.commit_timezone = 0
    made.message = text.encode()
    file = BytesIO()
    write_pack_objects(file, [made, tree, blob], DEFAULT_OBJECT_FORMAT, deltify=False)
    return made.id.decode(), file.getvalue()


class Client:
    """Pushes to one node over one connection, which is made again when it breaks. One thread's own."""

    def __init__(self, node: str, url: str, repository: str, timeout_s: float) -> None:
        self.node = node
        self._parts = urlsplit(url)
        self._path = f"{self._parts.path.rstrip('/')}/{repository}.git/git-receive-pack"
        self._timeout_s = timeout_s
        self._connection: HTTPConnection | None = None

    def push(self, ref: str, old: str, new: str, pack: bytes) -> Pushed:
        """Never raises for what the node or the network does."""
        began_at = time.monotonic()
        fate, said = self._push(ref, old, new, pack)
        found = _TXN.search(said)
        txn = found.group(1) if found else ""
        return Pushed(self.node, ref, old, new, began_at, time.monotonic(), fate, txn, said)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _push(self, ref: str, old: str, new: str, pack: bytes) -> tuple[Fate, str]:
        try:
            connection = self._connected()
        except OSError as error:
            return Fate.UNREACHABLE, str(error) or type(error).__name__
        command = f"{old} {new} {ref}\0{CAPABILITIES}".encode()
        headers = {"Content-Type": "application/x-git-receive-pack-request", "Accept": "application/x-git-receive-pack-result"}
        try:
            connection.request("POST", self._path, pkt(command) + FLUSH_PKT + pack, headers)
            answer = connection.getresponse()
            body = answer.read(ANSWER_BYTES_MAX)
        except (OSError, HTTPException) as error:
            self.close()
            return Fate.UNKNOWN, f"no answer: {str(error) or type(error).__name__}"
        if answer.will_close:
            self.close()
        if answer.status != 200:
            # A node says so before it has submitted anything; what it cannot know, it reports inside a 200.
            return Fate.REFUSED, f"HTTP {answer.status}: {body[:300].decode('utf-8', 'replace')}"
        return meaning(body)

    def _connected(self) -> HTTPConnection:
        if self._connection is None or self._connection.sock is None:
            make = HTTPSConnection if self._parts.scheme == "https" else HTTPConnection
            self._connection = make(self._parts.hostname or "", self._parts.port, timeout=self._timeout_s)
            self._connection.connect()
        return self._connection


def meaning(body: bytes) -> tuple[Fate, str]:
    """What a report-status in a side band says of the one ref that was pushed. Half a report says nothing."""
    bands = {1: b"", 2: b"", 3: b""}
    for packet in _packets(body):
        bands[packet[0]] = bands.get(packet[0], b"") + packet[1:]
    lines = [line.decode("utf-8", "replace").rstrip("\n") for line in _packets(bands[1])]
    remarks = bands[2].decode("utf-8", "replace").strip()
    status = next((line for line in lines if line.startswith(("ok ", "ng "))), None)
    if status is None:
        return Fate.UNKNOWN, "the answer broke off"
    if status.startswith("ok "):
        return Fate.ACKNOWLEDGED, remarks
    reason = status.split(" ", 2)[2] if status.count(" ") > 1 else "no reason given"
    return (Fate.UNKNOWN if "outcome unknown" in reason else Fate.REFUSED), reason


def _packets(data: bytes) -> list[bytes]:
    found = []
    while len(data) >= 4:
        try:
            size = int(data[:4], 16)
        except ValueError:
            break
        if not 4 < size <= len(data):
            break
        found.append(data[4:size])
        data = data[size:]
    return found
