"""Message ⇄ envelope: versioned, signed JSON that a person can read, and that nobody but its sender can have made.

    {"v":1,"kind":"gitquorum.prepare.v1","cluster":…,"sender":…,"receiver":…,"incarnation":…,"id":…,"correlation":…,
     "sent_at_ms":…,"deadline_at_ms":…,"body":{…},"signature":"base64"}

The signature covers the header's fields, one a line, and then the body's *bytes* as they stand in the envelope: nothing is
canonicalised, the body is not even parsed before the signature is found good. Every field but the signature is bound, so a
message cannot be replayed to another receiver, under another kind, in another cluster or as another's answer. A replay to the
same receiver is that receiver's business: it answers from its record. ``deadline_at_ms`` is told to people; clocks need not
agree, so nothing is refused for being late.

Its partners move bytes (``amqp.py``, ``direct.py``); votes' own signatures are the runtime's.
"""

import secrets
import time
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache
from itertools import count
from re import compile as pattern
from typing import Any

import msgspec

from broker.kinds import BY_MESSAGE, BY_NAME, ENVELOPE_BYTES_MAX, Kind
from node.ports.errors import NodeError
from node.ports.surroundings import Signer
from node.protocol.ids import NodeId
from node.protocol.messages import Message

VERSION = 1
_DOMAIN = "gitquorum-envelope-v1"
_ID = pattern(r"[A-Za-z0-9._-]{1,64}")
_DEADLINE_MS_MAX = 2**53
"""What every JSON reader can tell apart; also keeps a forged number from growing into something slow."""


class EnvelopeRefused(NodeError):
    """An envelope that is not taken, or a message that cannot become one; ``reason`` is a key of ``Codec.refused``."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Sealed:
    """An envelope ready to be sent, and what its carrier needs to know of it."""

    kind: Kind
    id: str
    correlation: str
    receiver: NodeId
    sent_at_ms: int
    deadline_at_ms: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Opened:
    """A verified message: ``sender`` made it, for this node."""

    kind: Kind
    id: str
    correlation: str
    sender: NodeId
    incarnation: int
    sent_at_ms: int
    deadline_at_ms: int
    message: Message


class Envelope(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What is on the wire; ``asyncapi.py`` describes it from here."""

    v: int
    kind: str
    cluster: str
    sender: str
    receiver: str
    incarnation: int
    id: str
    correlation: str
    sent_at_ms: int
    deadline_at_ms: int
    body: msgspec.Raw
    signature: str

    def signed_bytes(self) -> bytes:
        """What the signature covers. No field before the body can hold a newline: see ``Codec._check_header``."""
        return _signed_bytes(
            self.kind,
            self.cluster,
            self.sender,
            self.receiver,
            self.incarnation,
            self.id,
            self.correlation,
            self.sent_at_ms,
            self.deadline_at_ms,
            bytes(self.body),
        )


class Codec:
    """Seals this node's messages and opens its peers'. ``refused`` counts what was not taken, by reason."""

    def __init__(
        self,
        cluster: str,
        me: NodeId,
        incarnation: int,
        signer: Signer,
        *,
        members: Collection[NodeId] | None = None,
        wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """``members``, if given, are the only senders whose signature is even looked at."""
        self.cluster = cluster
        self.me = me
        self.incarnation = incarnation
        self.refused: Counter[str] = Counter()
        self._signer = signer
        self._members = None if members is None else frozenset(members)
        self._wall_ms = wall_ms
        # Unique without asking for randomness each time: a life of this process, and a number within it.
        self._life = secrets.token_hex(8)
        self._numbers = count(1)

    def __repr__(self) -> str:
        return f"<Codec {self.me} of {self.cluster!r}, refused {dict(self.refused)}>"

    def seal(self, message: Message, to: NodeId, *, timeout_s: float, correlation: str = "") -> Sealed:
        """Sign ``message`` for ``to``. A request correlates with itself; a reply with the request's id.

        Raises:
            EnvelopeRefused: it is larger than its kind may be, or holds text that is no Unicode; nothing is counted.
        """
        kind = BY_MESSAGE[type(message)]
        try:
            body = _encoder.encode(message)
        except UnicodeEncodeError as error:
            raise EnvelopeRefused("not UTF-8", str(error)) from error
        own_id = f"{self._life}-{next(self._numbers)}"
        sent_at_ms = self._wall_ms()
        deadline_at_ms = sent_at_ms + int(timeout_s * 1000)
        header = (
            kind.name,
            self.cluster,
            str(self.me),
            str(to),
            self.incarnation,
            own_id,
            correlation or own_id,
            sent_at_ms,
            deadline_at_ms,
        )
        signature = b64encode(self._signer.sign(_signed_bytes(*header, body))).decode()
        data = _encoder.encode(Envelope(VERSION, *header, msgspec.Raw(body), signature))
        if len(data) > kind.bytes_max:
            raise EnvelopeRefused("oversize", f"a {kind.word} of {len(data)} bytes; {kind.bytes_max} are the most")
        return Sealed(kind, own_id, correlation or own_id, to, sent_at_ms, deadline_at_ms, data)

    def open(self, data: bytes) -> Opened:
        """Verify and decode.

        Raises:
            EnvelopeRefused: and counts it under its reason.
        """
        try:
            return self._open(data)
        except EnvelopeRefused as refusal:
            self.refused[refusal.reason] += 1
            raise

    def _open(self, data: bytes) -> Opened:
        if len(data) > ENVELOPE_BYTES_MAX:
            raise EnvelopeRefused("oversize", f"{len(data)} bytes")
        envelope: Envelope = _decode(_envelope_decoder(), data, "malformed")
        kind = self._check_header(envelope, len(data))
        self._check_signature(envelope)
        message: Message = _decode(_body_decoder(kind), envelope.body, "bad body")
        return Opened(
            kind,
            envelope.id,
            envelope.correlation,
            NodeId(envelope.sender),
            envelope.incarnation,
            envelope.sent_at_ms,
            envelope.deadline_at_ms,
            message,
        )

    def _check_header(self, envelope: Envelope, size: int) -> Kind:
        if envelope.v != VERSION:
            raise EnvelopeRefused("wrong version", f"{envelope.v}")
        kind = BY_NAME.get(envelope.kind)
        if kind is None:
            raise EnvelopeRefused("unknown kind", repr(envelope.kind[:64]))
        if size > kind.bytes_max:
            raise EnvelopeRefused("oversize", f"a {kind.word} of {size} bytes")
        if envelope.cluster != self.cluster:
            raise EnvelopeRefused("wrong cluster", repr(envelope.cluster[:64]))
        if envelope.receiver != self.me:
            raise EnvelopeRefused("wrong receiver", repr(envelope.receiver[:64]))
        if self._members is not None and envelope.sender not in self._members:
            raise EnvelopeRefused("unknown sender", repr(envelope.sender[:64]))
        names = (envelope.sender, envelope.id, envelope.correlation)
        numbers = (envelope.incarnation, envelope.sent_at_ms, envelope.deadline_at_ms)
        if not all(map(_ID.fullmatch, names)) or not all(0 <= number <= _DEADLINE_MS_MAX for number in numbers):
            raise EnvelopeRefused("malformed", "an id or number out of bounds")
        return kind

    def _check_signature(self, envelope: Envelope) -> None:
        try:
            signature = b64decode(envelope.signature, validate=True)
        except (Base64Error, ValueError) as error:
            raise EnvelopeRefused("bad signature", "it is not base64") from error
        # The last character of base64 has unused bits: only one spelling of a signature is taken.
        if b64encode(signature).decode() != envelope.signature:
            raise EnvelopeRefused("bad signature", "it is not canonical base64")
        if not self._signer.verify(NodeId(envelope.sender), envelope.signed_bytes(), signature):
            raise EnvelopeRefused("bad signature", f"not made by {envelope.sender}")


def _signed_bytes(
    kind: str,
    cluster: str,
    sender: str,
    receiver: str,
    incarnation: int,
    own_id: str,
    correlation: str,
    sent_at_ms: int,
    deadline_at_ms: int,
    body: bytes,
) -> bytes:
    header = (
        f"{_DOMAIN}\n{VERSION}\n{kind}\n{cluster}\n{sender}\n{receiver}\n{incarnation}\n{own_id}\n{correlation}\n"
        f"{sent_at_ms}\n{deadline_at_ms}\n"
    )
    return header.encode() + body


_encoder = msgspec.json.Encoder()


@cache
def _envelope_decoder() -> msgspec.json.Decoder[Envelope]:
    return msgspec.json.Decoder(Envelope)


@cache
def _body_decoder(kind: Kind) -> msgspec.json.Decoder[Message]:
    return msgspec.json.Decoder(kind.message)


def _decode(decoder: msgspec.json.Decoder[Any], data: bytes | msgspec.Raw, reason: str) -> Any:
    """msgspec's three ways to say no, as one: wrong shape or bytes, nested too deeply, not UTF-8."""
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EnvelopeRefused(reason, str(error)) from error
    except RecursionError as error:
        raise EnvelopeRefused(reason, "nested too deeply") from error
