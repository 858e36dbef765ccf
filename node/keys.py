"""Ed25519 keys: this node's own, and the keyring of everybody's public keys (RFC 8032; ``ports.Signer``).

Files are read and written by ``cryptography``; signing and verifying is libsodium's (PyNaCl), whose verification takes half the
time of OpenSSL's. Two of them are on the way of every linearizable read, and more on that of every push.
"""

import os
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from nacl.exceptions import CryptoError
from nacl.signing import SigningKey, VerifyKey

from node.protocol.ids import NodeId


class KeyRefused(ValueError):
    """A key file or a public key that cannot be used; the text says which and why."""


class Keyring:
    """Signs with this node's key, verifies with anybody's; retired keys still verify old certificates."""

    def __init__(self, node: NodeId, private: Ed25519PrivateKey, public: Mapping[NodeId, Sequence[str]]) -> None:
        self.node = node
        self._private = SigningKey(private.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption()))
        self._public = {peer: [read_public(key) for key in keys] for peer, keys in public.items()}
        if public_text(private) not in public.get(node, ()):
            raise KeyRefused(f"the private key of {node} does not belong to its public key in the keyring")

    def sign(self, message: bytes) -> bytes:
        return self._private.sign(message).signature

    def verify(self, node: NodeId, message: bytes, signature: bytes) -> bool:
        for key in self._public.get(node, ()):
            try:
                key.verify(message, signature)
            except (CryptoError, ValueError):  # ValueError: it has not the length of one
                continue
            return True
        return False


def write_private(path: Path) -> str:
    """Make a new private key at ``path`` (mode 0600, never over an existing file); return its public key."""
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(file.fileno())
    return public_text(key)


def read_private(path: Path) -> Ed25519PrivateKey:
    """Load a key made by ``write_private``.

    Raises:
        KeyRefused: missing, not an Ed25519 key, or readable by others.
    """
    try:
        mode, content = path.stat().st_mode, path.read_bytes()
    except OSError as error:
        raise KeyRefused(f"{path} cannot be read: {error.strerror}") from error
    if mode & 0o077:
        raise KeyRefused(f"{path} can be read by others; run: chmod 600 {path}")
    try:
        key = load_pem_private_key(content, password=None)
    except ValueError as error:
        raise KeyRefused(f"{path} is not a private key in PEM form") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyRefused(f"{path} is not an Ed25519 key")
    return key


def public_text(key: Ed25519PrivateKey) -> str:
    """The public half, as it stands in the configuration (base64)."""
    return b64encode(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()


def read_public(text: str) -> VerifyKey:
    """Raises ``KeyRefused`` for anything but 32 bytes in base64."""
    try:
        return VerifyKey(b64decode(text, validate=True))
    except (CryptoError, ValueError) as error:
        raise KeyRefused(f"{text!r} is not an Ed25519 public key in base64") from error
