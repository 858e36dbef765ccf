"""Requests that stock git and the REST client would not make: pushes by hand, headers of answers, envelopes between nodes.

A push by hand is what an old, broken or hostile client sends: any commands, any bytes for a pack. What comes back is read as
git reads it: the report-status inside the side band, and the ``remote:`` lines.
"""

import gzip
import http.client
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

ZERO = "0" * 40
CAPABILITIES = "report-status side-band-64k object-format=sha1 agent=by-hand/1"
TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Reply:
    """An HTTP answer with its headers, names in lower case."""

    status: int
    headers: Mapping[str, str]
    data: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.data)


@dataclass(frozen=True)
class Report:
    """What a push was told: ``unpack`` line, per ref ``ok`` or the reason, and the lines a person sees."""

    unpack: str
    refs: Mapping[str, str]
    remote: str


def call(
    base_url: str,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Reply:
    """One request, its path sent as it is written."""
    parts = urlsplit(base_url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout_s)
    try:
        connection.request(method, path, body, dict(headers or {}))
        answer = connection.getresponse()
        return Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
    finally:
        connection.close()


def call_json(base_url: str, method: str, path: str, body: object, **headers: str) -> Reply:
    given = {"Content-Type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    return call(base_url, method, path, json.dumps(body).encode(), given)


def push(
    base_url: str,
    name: str,
    commands: Iterable[tuple[str, str, str]],
    pack: bytes,
    *,
    capabilities: str = CAPABILITIES,
    compressed: bool = False,
) -> Report:
    """``commands`` are (old, new, ref). Fails unless the answer is a report."""
    answer = call(
        base_url,
        "POST",
        f"/{name}.git/git-receive-pack",
        request_body(commands, pack, capabilities, compressed),
        {
            "Content-Type": "application/x-git-receive-pack-request",
            "Accept": "application/x-git-receive-pack-result",
            **({"Content-Encoding": "gzip"} if compressed else {}),
        },
    )
    assert answer.status == 200, answer
    return report_of(answer.data)


def request_body(commands: Iterable[tuple[str, str, str]], pack: bytes, capabilities: str, compressed: bool) -> bytes:
    lines = [f"{old} {new} {ref}" for old, new, ref in commands]
    lines[0] += f"\0{capabilities}"
    body = b"".join(pkt(line.encode()) for line in lines) + b"0000" + pack
    return gzip.compress(body) if compressed else body


def pkt(content: bytes) -> bytes:
    return f"{len(content) + 4:04x}".encode() + content


def packets(data: bytes) -> list[bytes]:
    """pkt-lines up to the first flush or the end."""
    found = []
    while data and (size := int(data[:4], 16)):
        assert 4 <= size <= len(data), data[:80]
        found.append(data[4:size])
        data = data[size:]
    return found


def report_of(data: bytes) -> Report:
    bands: dict[int, bytes] = {1: b"", 2: b"", 3: b""}
    for packet in packets(data):
        bands[packet[0]] += packet[1:]
    assert not bands[3], bands[3]
    unpack, *lines = (line.decode().rstrip("\n") for line in packets(bands[1]))
    refs = {}
    for line in lines:
        word, ref, *reason = line.split(" ", 2)
        refs[ref] = word if word == "ok" else " ".join(reason)
    return Report(unpack.removeprefix("unpack "), refs, bands[2].decode("utf-8", "replace"))
