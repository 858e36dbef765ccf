"""The shapes of REST answers, as pydantic models: each field with its meaning, each model with one example.

They serve three readers: the code that answers, the OpenAPI document, and the tests that compare the two. Requests have
shapes of their own (``msgspec``, strict); they are at the end.
"""

from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field

SHA1 = "0f" * 20
DIGEST = "9c" * 32
TXN = "tx-01jd6w0v9k"
TIME = "2026-11-23T01:02:03.456000Z"


def _example(value: dict[str, Any]) -> ConfigDict:
    return ConfigDict(extra="forbid", json_schema_extra={"example": value})


class Peer(BaseModel):
    """What this node thinks of a peer."""

    model_config = _example(
        {"node_id": "node-2", "url": "http://127.0.0.1:3002", "state": "alive", "reason": "", "last_seen_s": 0.2}
    )
    node_id: str
    url: str
    state: str = Field(description="alive or suspected")
    reason: str
    last_seen_s: float | None = Field(description="Seconds since it last answered.")


class Broker(BaseModel):
    """How nodes talk: RabbitMQ, or directly."""

    model_config = _example({"name": "rabbitmq", "state": "up", "detail": "127.0.0.1:5672"})
    name: str = Field(description="rabbitmq or direct")
    state: Literal["up", "down"]
    detail: str


class Health(BaseModel):
    """A node's own view of itself and its cluster."""

    model_config = _example(
        {
            "node_id": "node-1",
            "status": "ok",
            "cpu_percent": 3.1,
            "memory_percent": 41.7,
            "peer_count": 1,
            "peers": [Peer.model_config["json_schema_extra"]["example"]],  # type: ignore[index]
            "broker": {"name": "rabbitmq", "state": "up", "detail": "127.0.0.1:5672"},
            "timestamp": TIME,
            "cluster": "gitquorum",
            "incarnation": 1,
            "quorum": 2,
            "voters": ["node-1", "node-2"],
            "ready": True,
            "write_ready": True,
            "problem": "",
            "standing": "member",
            "standing_reason": "",
            "standing_since": TIME,
            "waits_for": "",
        }
    )
    node_id: str
    status: Literal["ok", "degraded", "starting"] = Field(description="degraded: a peer, the broker or the quorum is missing.")
    cpu_percent: float = Field(description="Of the whole machine, sampled every two seconds.")
    memory_percent: float
    peer_count: int
    peers: list[Peer]
    broker: Broker
    timestamp: datetime = Field(description="Now, by this node's clock.")
    cluster: str
    incarnation: int
    quorum: int = Field(description="Yes votes a change needs.")
    voters: list[str]
    ready: bool = Field(description="Replayed, swept, serving.")
    write_ready: bool = Field(description="A quorum is in reach.")
    problem: str
    standing: Literal["member", "new", "starting", "rejoining", "stopped"] = Field(
        description="member: it speaks for its repositories. All others answer nothing for any."
    )
    standing_reason: str
    standing_since: datetime | None = Field(description="By this node's clock; null where it is not kept.")
    waits_for: str = Field(description="Who or what a node that is no member waits for.")


class Alive(BaseModel):
    """The process answers."""

    model_config = _example({"status": "alive"})
    status: Literal["alive"] = "alive"


class Ready(BaseModel):
    """The node serves what was asked about."""

    model_config = _example({"status": "ready", "role": "write"})
    status: Literal["ready"] = "ready"
    role: Literal["read", "write"]


class Committed(BaseModel):
    """A change that is on a quorum of disks."""

    model_config = ConfigDict(extra="forbid")
    repo_id: str
    replicated: bool = Field(description="On more than one node's disk. False only where the cluster is one node.")
    peers_confirmed: int = Field(description="Peers, other than the node that took the request, known to hold it durably.")
    quorum: int = Field(description="Yes votes it needed, the node's own included.")
    version: int
    transaction_id: str
    committed_on: list[str] = Field(description="The nodes known to hold it durably when this was answered.")


_COMMITTED = {
    "repo_id": "alice/project",
    "replicated": True,
    "peers_confirmed": 2,
    "quorum": 2,
    "version": 1,
    "transaction_id": TXN,
    "committed_on": ["node-1", "node-2", "node-3"],
}


class Created(Committed):
    """A repository was created."""

    model_config = _example({**_COMMITTED, "created": True})
    created: Literal[True] = True


class Deleted(Committed):
    """A repository was deleted."""

    model_config = _example({**_COMMITTED, "deleted": True, "version": 7})
    deleted: Literal[True] = True


class Unsettled(BaseModel):
    """It may or may not happen; it is being settled."""

    model_config = _example(
        {
            "repo_id": "alice/project",
            "outcome": "unknown",
            "transaction_id": TXN,
            "detail": "quorum not reached (1/2): node-2 no answer",
            "votes": [{"node_id": "node-2", "vote": "no answer", "reason": ""}],
        }
    )
    repo_id: str
    outcome: Literal["unknown"] = "unknown"
    transaction_id: str
    detail: str
    votes: list["Vote"]


class Vote(BaseModel):
    """One voter's part in a transaction."""

    model_config = _example({"node_id": "node-2", "vote": "no", "reason": "disk full"})
    node_id: str
    vote: str = Field(description="yes, no, no answer, lagging …")
    reason: str


class Listed(BaseModel):
    """A repository in a list."""

    model_config = _example({"repo_id": "alice/project", "head": "refs/heads/main", "version": 42, "digest": DIGEST})
    repo_id: str
    head: str
    version: int
    digest: str


class RepositoryPage(BaseModel):
    """Existing repositories in the order of their names, as this node knows them."""

    model_config = _example({"repositories": [Listed.model_config["json_schema_extra"]["example"]], "next": None})  # type: ignore[index]
    repositories: list[Listed]
    next: str | None = Field(description="Cursor of the next page; the Link header has it too.")


class Repository(BaseModel):
    """One repository."""

    model_config = _example(
        {
            "repo_id": "alice/project",
            "exists": True,
            "path": "/var/lib/gitquorum/alice/project.git",
            "head": "refs/heads/main",
            "version": 42,
            "digest": DIGEST,
            "size": 123456,
        }
    )
    repo_id: str
    exists: Literal[True] = True
    path: str = Field(description="The bare repository on this node's disk.")
    head: str
    version: int = Field(description="Number of committed changes.")
    digest: str = Field(description="Chained over all of them; equal digests, equal repositories.")
    size: int = Field(description="Bytes on this node's disk.")


class RefState(BaseModel):
    """Where a ref points."""

    model_config = _example({"name": "refs/tags/v1", "oid": SHA1, "peeled": SHA1})
    name: str
    oid: str
    peeled: str | None = Field(description="What an annotated tag finally points at.")


class RefPage(BaseModel):
    """Refs in the order of their names."""

    model_config = _example(
        {
            "repo_id": "alice/project",
            "version": 42,
            "head": "refs/heads/main",
            "refs": [{"name": "refs/heads/main", "oid": SHA1, "peeled": None}],
            "next": None,
        }
    )
    repo_id: str
    version: int
    head: str
    refs: list[RefState]
    next: str | None = Field(description="Cursor of the next page; the Link header has it too.")


class ReplicaState(BaseModel):
    """One node's copy."""

    model_config = _example({"node_id": "node-2", "state": "current", "version": 42, "digest": DIGEST, "applied": 42})
    node_id: str
    state: str = Field(description="current, lagging, divergent, in doubt or offline")
    version: int | None
    digest: str | None
    applied: int | None = Field(description="Version that the repository on that disk is known to show.")


class Replicas(BaseModel):
    """A repository on every node."""

    model_config = _example(
        {
            "repo_id": "alice/project",
            "version": 42,
            "digest": DIGEST,
            "replicas": [{"node_id": "node-1", "state": "current", "version": 42, "digest": DIGEST, "applied": 42}],
        }
    )
    repo_id: str
    version: int
    digest: str
    replicas: list[ReplicaState]


class Update(BaseModel):
    """One ref from old to new; forty zeros stand for "no object"."""

    model_config = _example({"ref": "refs/heads/main", "old": "0" * 40, "new": SHA1, "peeled": None})
    ref: str
    old: str
    new: str
    peeled: str | None


class Submission(BaseModel):
    """What one client asked for."""

    model_config = _example(
        {
            "transaction_id": TXN,
            "actor": "anonymous",
            "node_id": "node-1",
            "at": TIME,
            "head": None,
            "updates": [{"ref": "refs/heads/main", "old": "0" * 40, "new": SHA1, "peeled": None}],
            "update_count": 1,
        }
    )
    transaction_id: str
    actor: str
    node_id: str = Field(description="The node that took it.")
    at: datetime
    head: str | None
    updates: list[Update] = Field(description="The first thousand.")
    update_count: int


class SignatureBy(BaseModel):
    """An Ed25519 signature, base64."""

    model_config = _example({"node_id": "node-2", "incarnation": 1, "signature": "c2lnbmF0dXJl"})
    node_id: str
    incarnation: int
    signature: str


class CertificateState(BaseModel):
    """Why a change is committed; checkable offline with the nodes' public keys (docs/api.md says how)."""

    model_config = _example(
        {
            "repository": "alice/project",
            "voters": DIGEST,
            "quorum": 2,
            "version": 42,
            "digest": DIGEST,
            "ballot": "3.node-1.1",
            "votes": [{"node_id": "node-2", "incarnation": 1, "signature": "c2lnbmF0dXJl"}],
            "decision": {"node_id": "node-1", "incarnation": 1, "signature": "c2lnbmF0dXJl"},
        }
    )
    repository: str
    voters: str = Field(description="Digest of the voter set.")
    quorum: int
    version: int
    digest: str
    ballot: str = Field(description="round.node.attempt")
    votes: list[SignatureBy]
    decision: SignatureBy


class Entry(BaseModel):
    """One committed change."""

    model_config = _example(
        {
            "version": 42,
            "digest": DIGEST,
            "base_digest": DIGEST,
            "kind": "update",
            "committed_at": TIME,
            "requests": [Submission.model_config["json_schema_extra"]["example"]],  # type: ignore[index]
            "certificate": None,
        }
    )
    version: int
    digest: str
    base_digest: str
    kind: Literal["create", "update", "delete"]
    committed_at: datetime = Field(description="When this node learned of the decision.")
    requests: list[Submission]
    certificate: CertificateState | None = Field(description="Absent where this node inferred the commit from a later one.")


class HistoryAnswer(BaseModel):
    """Committed changes, oldest first."""

    model_config = _example({"repo_id": "alice/project", "version": 42, "changes": [], "next": None})
    repo_id: str
    version: int = Field(description="The newest there is.")
    changes: list[Entry]
    next: int | None = Field(description="``since`` of the next page; the Link header has it too.")


class Rejection(BaseModel):
    """Why one ref was refused."""

    model_config = _example({"ref": "refs/heads/main", "reason": "fetch first"})
    ref: str
    reason: str


class TransactionState(BaseModel):
    """What became of one request."""

    model_config = _example(
        {
            "transaction_id": TXN,
            "repo_id": "alice/project",
            "kind": "update",
            "node_id": "node-1",
            "actor": "anonymous",
            "submitted_at": TIME,
            "outcome": "committed",
            "reason": "",
            "version": 42,
            "digest": DIGEST,
            "ballot": "3.node-1.1",
            "quorum": 2,
            "votes": [{"node_id": "node-2", "vote": "yes", "reason": ""}],
            "rejections": [],
            "phases_ms": {"prepare": 3.2, "apply": 1.1},
            "retry_of": None,
            "settled_at": TIME,
            "settled_by": "",
        }
    )
    transaction_id: str
    repo_id: str
    kind: str
    node_id: str = Field(description="The node that took the request.")
    actor: str
    submitted_at: datetime
    outcome: Literal["committed", "aborted", "unknown", "rejected"] | None = Field(description="null while it runs.")
    reason: str
    version: int | None
    digest: str | None
    ballot: str
    quorum: int
    votes: list[Vote]
    rejections: list[Rejection]
    phases_ms: dict[str, float] = Field(description="How long each phase took.")
    retry_of: str | None = Field(description="The aborted transaction that this one tried again.")
    settled_at: datetime | None
    settled_by: str = Field(description="Who found or made the decision of a doubtful one, and how.")


class ProblemDocument(BaseModel):
    """RFC 9457. Kinds add members of their own, for example ``votes``."""

    model_config = ConfigDict(
        extra="allow",
        title="Problem",
        json_schema_extra={
            "example": {
                "type": "/problems/quorum-not-reached",
                "title": "Quorum not reached",
                "status": 503,
                "detail": "Quorum not reached (1/2): node-2 no answer. Nothing was changed, for certain; send it again.",
                "instance": "/repos",
                "request_id": "4f1d2a9c0b7e6d53",
                "transaction_id": TXN,
                "votes": [{"node_id": "node-2", "vote": "no answer", "reason": ""}],
            }
        },
    )
    type: str = Field(description="A stable path; GET it for its meaning.")
    title: str
    status: int
    detail: str = Field(description="What happened, and what to do.")
    instance: str = Field(description="The path that was asked for.")
    request_id: str


class ProblemKind(BaseModel):
    """What a problem type means."""

    model_config = _example({"type": "/problems/busy", "status": 503, "title": "Too busy", "advice": "Try again later."})
    type: str
    status: int
    title: str
    advice: str


class CreateRepository(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Body of ``POST /repos``."""

    repo_id: str
    head: str | None = None


def at(ms: int) -> datetime:
    """Milliseconds since 1970 as a time in UTC."""
    return datetime.fromtimestamp(ms / 1000, UTC)
