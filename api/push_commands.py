"""The head of a push, before its pack: shallow lines, ref commands with the client's capabilities, push options.

Sans-IO, as ``pkt.py``: feed bytes until a ``PushRequest`` comes out; ``rest()`` is where the pack begins. Only the shape is
judged here; which refs may be written is decided, per ref, in ``report_status.py``.
Reference: gitprotocol-pack(5), "Reference Update Request".
"""

import re
from dataclasses import dataclass

from api.pkt import BadPktLine, PktParser, Special
from node.protocol.ids import ZERO_OID, Oid

PUSH_OPTIONS_MAX = 256
PUSH_OPTION_BYTES_MAX = 4096
SHALLOW_LINES_MAX = 20_000
"""Far beyond any honest clone: each is a commit where its history was cut."""

_COMMAND = re.compile(rb"([0-9a-f]{40}) ([0-9a-f]{40}) ([^\x00\n]+)(?:\x00(.*))?", re.DOTALL)
_SHALLOW = re.compile(rb"shallow ([0-9a-f]{40})")


class BadPushRequest(ValueError):
    """No git client sends this."""


@dataclass(frozen=True, slots=True)
class Command:
    """One ref from ``old`` to ``new``; the name as it was sent, not yet judged."""

    ref: bytes
    old: Oid
    new: Oid

    @property
    def deletes(self) -> bool:
        return self.new == ZERO_OID


@dataclass(frozen=True, slots=True)
class PushRequest:
    """What a client wants done, and how it wants to hear about it."""

    commands: tuple[Command, ...]
    capabilities: frozenset[bytes] = frozenset()
    shallow: tuple[Oid, ...] = ()
    options: tuple[bytes, ...] = ()

    @property
    def atomic(self) -> bool:
        return b"atomic" in self.capabilities

    @property
    def quiet(self) -> bool:
        return b"quiet" in self.capabilities

    @property
    def side_band(self) -> bool:
        return b"side-band-64k" in self.capabilities

    @property
    def wants_report(self) -> bool:
        return b"report-status" in self.capabilities or b"report-status-v2" in self.capabilities

    @property
    def sends_pack(self) -> bool:
        """git sends a pack, perhaps an empty one, unless every command deletes."""
        return not all(command.deletes for command in self.commands)


class PushRequestParser:
    """Feed bytes until the request comes out."""

    def __init__(self, bytes_max: int) -> None:
        self._packets = PktParser(bytes_max)
        self._commands: list[Command] = []
        self._capabilities: frozenset[bytes] = frozenset()
        self._shallow: list[Oid] = []
        self._options: list[bytes] = []
        self._in_options = False

    def feed(self, data: bytes) -> PushRequest | None:
        """The request, once its last flush packet is here.

        Raises:
            BadPktLine: it is not framed as pkt-lines, or is too long.
            BadPushRequest: the lines are no push.
        """
        self._packets.feed(data)
        while (packet := self._packets.take()) is not None:
            if packet is Special.FLUSH:
                if self._in_options or not self._commands or b"push-options" not in self._capabilities:
                    return self._request()
                self._in_options = True
            elif isinstance(packet, Special):
                raise BadPktLine("a push has no delimiter packets")
            elif self._in_options:
                self._on_option(packet)
            else:
                self._on_line(packet)
        return None

    def rest(self) -> bytes:
        """The bytes after the request: the beginning of the pack."""
        return self._packets.rest()

    def _on_line(self, line: bytes) -> None:
        if match := _COMMAND.fullmatch(line):
            old, new, ref, capabilities = match.groups()
            self._commands.append(Command(ref, Oid(old.decode()), Oid(new.decode())))
            if capabilities is not None:
                self._on_capabilities(capabilities)
        elif match := _SHALLOW.fullmatch(line):
            if len(self._shallow) >= SHALLOW_LINES_MAX:
                raise BadPushRequest(f"more than {SHALLOW_LINES_MAX} shallow lines")
            self._shallow.append(Oid(match[1].decode()))
        elif line.startswith(b"push-cert"):
            raise BadPushRequest("signed pushes are not offered here")
        else:
            raise BadPushRequest(f"protocol error: expected old/new/ref, got {line[:100]!r}")

    def _on_capabilities(self, text: bytes) -> None:
        if self._capabilities:
            raise BadPushRequest("capabilities are sent once, with the first command")
        self._capabilities = frozenset(text.split())
        for capability in self._capabilities:
            if capability.startswith(b"object-format=") and capability != b"object-format=sha1":
                raise BadPushRequest("this repository's object format is sha1")

    def _on_option(self, option: bytes) -> None:
        if len(self._options) >= PUSH_OPTIONS_MAX or len(option) > PUSH_OPTION_BYTES_MAX:
            raise BadPushRequest(f"at most {PUSH_OPTIONS_MAX} push options of {PUSH_OPTION_BYTES_MAX} bytes each")
        self._options.append(option)

    def _request(self) -> PushRequest:
        return PushRequest(tuple(self._commands), self._capabilities, tuple(self._shallow), tuple(self._options))
