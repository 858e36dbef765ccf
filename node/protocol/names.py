"""What names are legal: repositories, refs, object names, node ids. Every path in (HTTP, AMQP, command line) asks here.

References: git-check-ref-format(1); a repository's name becomes a path, so it is much stricter than a ref.

    NameRefused
    ├── BadRepositoryName
    ├── BadRefName
    └── BadIdentifier
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from node.protocol.ids import Digest, NodeId, Oid, RefName, RepoId, TxnId

WRITABLE_NAMESPACES = ("refs/heads/", "refs/tags/", "refs/notes/")
"""One push of ``refs/replace/<oid>`` once wedged a repository for all later pushes: nothing else is writable."""

REF_NAME_LENGTH_MAX = 1024

_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NODE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TXN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_OID = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_REF_FORBIDDEN = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//")


class NameRefused(ValueError):
    """A name that no part of the system accepts; nothing was touched, and a retry with the same name cannot help."""


class BadRepositoryName(NameRefused):
    """Not ``owner/name`` with the legal characters."""


class BadRefName(NameRefused):
    """Not a ref name that git accepts, or outside the writable namespaces."""


class BadIdentifier(NameRefused):
    """A node id, transaction id, oid or digest of the wrong shape."""


@dataclass(frozen=True, slots=True)
class RepositoryName:
    """``owner/name`` as its creator wrote it; ``key`` is what the register is called."""

    owner: str
    name: str

    @classmethod
    def parse(cls, text: str) -> "RepositoryName":
        """Read ``owner/name``.

        Raises:
            BadRepositoryName: with a sentence that says which rule was broken.
        """
        owner, slash, name = text.partition("/")
        if not slash or "/" in name:
            raise BadRepositoryName("a repository is named owner/name, with exactly one slash")
        _check_segment("owner", owner)
        _check_segment("repository", name)
        return cls(owner, name)

    @property
    def key(self) -> RepoId:
        return RepoId(str(self).lower())

    def __str__(self) -> str:
        return f"{self.owner}/{self.name}"


def _check_segment(what: str, text: str) -> None:
    if not _SEGMENT.fullmatch(text):
        raise BadRepositoryName(f"{what} must be 1 to 64 letters, digits, '.', '_' or '-', and begin with a letter or digit")
    if ".." in text:
        raise BadRepositoryName(f"{what} must not contain '..'")
    if text.lower().endswith((".git", ".lock")):
        raise BadRepositoryName(f"{what} must not end in .git or .lock")


@lru_cache(maxsize=1024)
def check_repo_id(text: str) -> RepoId:
    """A register's key as it travels between nodes.

    Raises:
        BadRepositoryName: if it is no legal name in lower case.
    """
    key = RepositoryName.parse(text).key
    if key != text:
        raise BadRepositoryName("a register's key is in lower case")
    return key


def check_ref_format(text: str) -> RefName:
    """git-check-ref-format(1) for a full ref name.

    Raises:
        BadRefName: if git would refuse it.
    """
    if not text.startswith("refs/") or text.count("/") < 2:
        raise BadRefName("a ref is named refs/<kind>/<name>")
    if len(text.encode("utf-8", "surrogatepass")) > REF_NAME_LENGTH_MAX:
        raise BadRefName(f"a ref name is at most {REF_NAME_LENGTH_MAX} bytes long")
    if _REF_FORBIDDEN.search(text) or text.endswith(("/", ".")):
        raise BadRefName("git-check-ref-format refuses this ref name")
    if any(part.startswith(".") or part.endswith(".lock") for part in text.split("/")):
        raise BadRefName("no part of a ref name may begin with '.' or end in '.lock'")
    if any(0xD800 <= ord(character) <= 0xDFFF for character in text):
        raise BadRefName("a ref name must be UTF-8")
    return RefName(text)


def check_writable_ref(text: str) -> RefName:
    """A ref that a client may write.

    Raises:
        BadRefName: if it is malformed or outside ``WRITABLE_NAMESPACES``.
    """
    ref = check_ref_format(text)
    if not ref.startswith(WRITABLE_NAMESPACES):
        raise BadRefName("only " + ", ".join(WRITABLE_NAMESPACES) + " can be written")
    return ref


def check_node_id(text: str) -> NodeId:
    if not _NODE_ID.fullmatch(text):
        raise BadIdentifier("a node id is 1 to 64 letters, digits, '.', '_' or '-'")
    return NodeId(text)


def check_txn_id(text: str) -> TxnId:
    if not _TXN_ID.fullmatch(text):
        raise BadIdentifier("a transaction id is 1 to 128 letters, digits, '.', '_' or '-'")
    return TxnId(text)


def check_oid(text: str) -> Oid:
    if not _OID.fullmatch(text):
        raise BadIdentifier("an object name is 40 hexadecimal digits in lower case")
    return Oid(text)


def check_digest(text: str) -> Digest:
    if not _DIGEST.fullmatch(text):
        raise BadIdentifier("a digest is 64 hexadecimal digits in lower case")
    return Digest(text)
