"""Ref advertisements, made from the register's value: no process is started, nothing on disk is read.

What is offered is what ``git upload-pack`` of git 2.39 offers with ``uploadpack.allowFilter`` and
``uploadpack.allowReachableSHA1InWant`` set, byte for byte but for the agent (a test compares them), less ``object-info``:
git offered that v2 command by default for some versions only, and a node may run on another. What is offered for pushes is
what ``receive_pack.py`` does.
Advertisements come in pieces of about 64 KiB, so that a hundred thousand refs are never one string.
"""

from collections.abc import Iterable, Iterator
from importlib.metadata import version

from api.fetch_request import LsRefs
from api.pkt import FLUSH_PKT, pkt
from node.protocol.ids import ZERO_OID, RefName
from node.protocol.register import Ref, Register

AGENT = f"agent=gitquorum/{version('gitquorum')}".encode()

UPLOAD_PACK = (
    b"multi_ack thin-pack side-band side-band-64k ofs-delta shallow deepen-since deepen-not deepen-relative no-progress "
    b"include-tag multi_ack_detailed allow-reachable-sha1-in-want no-done"
)
"""Offered by v0, before ``symref=``."""

UPLOAD_PACK_V2 = (b"ls-refs=unborn", b"fetch=shallow wait-for-done filter", b"server-option", b"object-format=sha1")

RECEIVE_PACK = (
    b"report-status report-status-v2 delete-refs side-band-64k quiet atomic ofs-delta push-options object-format=sha1 " + AGENT
)

PIECE_BYTES = 64 * 1024


def upload_pack_v0(register: Register) -> Iterator[bytes]:
    """HEAD first if it names a branch that exists; annotated tags are followed by what they peel to."""
    head = register.refs.get(register.head)
    symref = b" symref=HEAD:" + register.head.encode() if head else b""
    offered = UPLOAD_PACK + symref + b" filter object-format=sha1 " + AGENT
    return _pieces(_service(b"git-upload-pack"), _upload_lines(register, head), offered)


def upload_pack_v2() -> bytes:
    """The capabilities of protocol v2; refs are asked for by ``ls-refs``."""
    lines = b"".join(pkt(line + b"\n") for line in (b"version 2", AGENT, *UPLOAD_PACK_V2))
    return _service(b"git-upload-pack") + lines + FLUSH_PKT


def receive_pack(register: Register) -> Iterator[bytes]:
    """The refs a push is measured against: no HEAD, nothing peeled; an empty repository says so in one line."""
    lines: Iterator[bytes] = (_line(ref, name) for name, ref in _sorted(register))
    if not register.refs:
        lines = iter((f"{ZERO_OID} capabilities^{{}}".encode(),))
    return _pieces(_service(b"git-receive-pack"), lines, RECEIVE_PACK)


def ls_refs(register: Register, asked: LsRefs) -> Iterator[bytes]:
    """The answer to the v2 command."""
    lines = (pkt(line + b"\n") for line in _ls_refs_lines(register, asked))
    return _grouped(b"", lines)


def _upload_lines(register: Register, head: Ref | None) -> Iterator[bytes]:
    if head:
        yield f"{head.oid} HEAD".encode()
    for name, ref in _sorted(register):
        yield _line(ref, name)
        if ref.peeled:
            yield f"{ref.peeled} {name}^{{}}".encode()


def _ls_refs_lines(register: Register, asked: LsRefs) -> Iterator[bytes]:
    head = register.refs.get(register.head)
    if (head or (asked.unborn and asked.symrefs)) and asked.wants("HEAD"):
        target = f" symref-target:{register.head}" if asked.symrefs else ""
        yield f"{head.oid if head else 'unborn'} HEAD{target}".encode()
    for name, ref in _sorted(register):
        if not asked.wants(name):
            continue
        peeled = f" peeled:{ref.peeled}" if asked.peel and ref.peeled else ""
        yield f"{ref.oid} {name}{peeled}".encode()


def _sorted(register: Register) -> list[tuple[RefName, Ref]]:
    """In git's order: that of the names' bytes, which in UTF-8 is that of their code points."""
    return sorted(register.refs.items())


def _line(ref: Ref, name: RefName) -> bytes:
    return f"{ref.oid} {name}".encode()


def _service(name: bytes) -> bytes:
    return pkt(b"# service=" + name + b"\n") + FLUSH_PKT


def _pieces(head: bytes, lines: Iterator[bytes], capabilities: bytes) -> Iterator[bytes]:
    """Capabilities ride on the first line; upload-pack of an empty repository has none, and only ends."""
    first = next(lines, None)
    framed = (pkt(line + b"\n") for line in lines)
    if first is not None:
        head += pkt(first + b"\x00" + capabilities + b"\n")
    return _grouped(head, framed)


def _grouped(head: bytes, framed: Iterable[bytes]) -> Iterator[bytes]:
    piece, size = [head], len(head)
    for line in framed:
        piece.append(line)
        size += len(line)
        if size >= PIECE_BYTES:
            yield b"".join(piece)
            piece, size = [], 0
    piece.append(FLUSH_PKT)
    yield b"".join(piece)
