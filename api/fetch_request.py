"""A fetch's request body, looked at before anything is spawned: v0's want/have list, or one protocol v2 command.

Only the shape is judged, so that garbage costs nothing: what is wanted and whether it is there is git's own business, in
``git upload-pack``. ``ls-refs`` is read in full, since it is answered in process (``advertise.py``).
Reference: gitprotocol-v2(5), gitprotocol-http(5).
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from api.pkt import BadPktLine, Special, packets

REF_PREFIXES_MAX = 65_536
"""As git: with more of them a client means "all"."""

_V0_WORDS = (b"want ", b"have ", b"shallow ", b"deepen ", b"deepen-since ", b"deepen-not ", b"deepen-relative", b"filter ")
_V2_CAPABILITIES = (b"agent", b"object-format", b"server-option", b"session-id")


class BadFetchRequest(ValueError):
    """No git client sends this."""


@dataclass(frozen=True, slots=True)
class Nothing:
    """A lone flush packet, by which a client tries out whether it may post (git's ``probe_rpc``)."""


@dataclass(frozen=True, slots=True)
class LsRefs:
    """The v2 command for a ref advertisement."""

    peel: bool = False
    symrefs: bool = False
    unborn: bool = False
    prefixes: tuple[str, ...] = ()
    """Only refs that begin with one of these; empty means all. Invariant: sorted, and none begins with another one."""

    def wants(self, name: str) -> bool:
        """Whether a ref was asked for. One bisection: with 65,000 prefixes a walk for each ref would be an attack."""
        at = bisect_right(self.prefixes, name)
        return not self.prefixes or (at > 0 and name.startswith(self.prefixes[at - 1]))


@dataclass(frozen=True, slots=True)
class Objects:
    """A well-formed request for ``git upload-pack``."""


FetchRequest = Nothing | LsRefs | Objects


def read_request(body: bytes, version: int) -> FetchRequest:
    """What ``body`` asks for.

    Raises:
        BadPktLine: it is not framed as pkt-lines.
        BadFetchRequest: the lines are no fetch.
    """
    lines = packets(body)
    first = next(lines, None)
    if first is None:
        raise BadFetchRequest("the request is empty")
    if first is Special.FLUSH:
        return Nothing()
    return _v2(first, lines) if version == 2 else _v0(first, lines)


def _v0(first: bytes | Special, lines: Iterator[bytes | Special]) -> Objects:
    if not (isinstance(first, bytes) and first.startswith(b"want ")):
        raise BadFetchRequest("a fetch begins with what it wants")
    for line in lines:
        if isinstance(line, bytes):
            if not line.startswith(_V0_WORDS) and line != b"done":
                raise BadFetchRequest(f"unexpected line: {line[:100]!r}")
        elif line is not Special.FLUSH:
            raise BadPktLine("a v0 fetch has no delimiter packets")
    return Objects()


def _v2(first: bytes | Special, lines: Iterator[bytes | Special]) -> LsRefs | Objects:
    command, end = _v2_head(chain((first,), lines))
    arguments: list[bytes] = []
    if end is Special.DELIM:
        end = None
        for line in lines:
            if not isinstance(line, bytes):
                end = line
                break
            if command == b"ls-refs":
                arguments.append(line)
    if end is not Special.FLUSH or next(lines, None) is not None:
        raise BadFetchRequest("a command ends with one flush packet")
    return _ls_refs(arguments) if command == b"ls-refs" else Objects()


def _v2_head(lines: Iterator[bytes | Special]) -> tuple[bytes, Special | None]:
    """The command among its capabilities, and the packet that ends them. The order is free: git 2.30 names the object
    format before the command, against gitprotocol-v2(5), and git's own server takes it (``serve.c``, ``process_request``)."""
    command = b""
    end: Special | None = None
    for line in lines:
        if isinstance(line, Special):
            end = line
            break
        key, _, value = line.partition(b"=")
        if key == b"command":
            if command or value not in (b"ls-refs", b"fetch"):
                raise BadFetchRequest(f"invalid command {value[:100]!r}")
            command = value
        elif key not in _V2_CAPABILITIES:
            raise BadFetchRequest(f"unknown capability {line[:100]!r}")
        elif key == b"object-format" and value != b"sha1":
            raise BadFetchRequest("mismatched object format: server sha1")
    if not command:
        raise BadFetchRequest("no command requested")
    return command, end


def _ls_refs(arguments: list[bytes]) -> LsRefs:
    prefixes: list[str] = []
    flags = set()
    for argument in arguments:
        if argument.startswith(b"ref-prefix "):
            prefixes.append(argument[11:].decode("utf-8", "surrogateescape"))
        elif argument in (b"peel", b"symrefs", b"unborn"):
            flags.add(argument)
        else:
            raise BadFetchRequest(f"unexpected line: {argument[:100]!r}")
    wanted = _shortest(prefixes) if len(prefixes) < REF_PREFIXES_MAX else ()
    return LsRefs(b"peel" in flags, b"symrefs" in flags, b"unborn" in flags, wanted)


def _shortest(prefixes: list[str]) -> tuple[str, ...]:
    """Sorted, without those that a shorter one covers."""
    kept: list[str] = []
    for prefix in sorted(prefixes):
        if not kept or not prefix.startswith(kept[-1]):
            kept.append(prefix)
    return tuple(kept)
