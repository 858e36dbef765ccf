"""Values with structure as JSON text in the journal's columns. Reading validates: a value that cannot be is damage."""

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from node.ports.errors import JournalRefused, StorageError
from node.ports.journal import TransactionRecord
from node.protocol.acceptor import Accepted
from node.protocol.certificate import Certificate
from node.protocol.change import Change
from node.protocol.quorum import VoterSet

T = TypeVar("T")


def to_text(value: Accepted | Certificate | Change | TransactionRecord | VoterSet) -> str:
    """Raises ``StorageError`` for text that is no Unicode (a lone surrogate): nothing was written."""
    try:
        return _ENCODER.encode(value).decode()
    except (UnicodeEncodeError, TypeError) as error:
        raise StorageError(f"a {type(value).__name__} cannot be kept: {error}") from error


def read_accepted(text: str) -> Accepted:
    return _decode(_ACCEPTED, text)


def read_certificate(text: str) -> Certificate:
    return _decode(_CERTIFICATE, text)


def read_change(text: str) -> Change:
    return _decode(_CHANGE, text)


def read_transaction(text: str) -> TransactionRecord:
    return _decode(_TRANSACTION, text)


def read_voters(text: str) -> VoterSet:
    return _decode(_VOTERS, text)


def _decode(decoder: "msgspec.json.Decoder[T]", text: str) -> T:
    try:
        return decoder.decode(text)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise JournalRefused(f"the journal is damaged: a row cannot be read ({error})") from error


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not kept in the journal")


_ENCODER = msgspec.json.Encoder(enc_hook=_plain)
_ACCEPTED = msgspec.json.Decoder(Accepted)
_CERTIFICATE = msgspec.json.Decoder(Certificate)
_CHANGE = msgspec.json.Decoder(Change)
_TRANSACTION = msgspec.json.Decoder(TransactionRecord)
_VOTERS = msgspec.json.Decoder(VoterSet)
