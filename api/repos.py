"""``/repos``: create, list, show, delete; refs, replicas and history of a repository.

A thin layer: it checks what came in, asks the ``Service``, and says what came out in HTTP's words. Reads of one repository
begin with ``Service.read``, so all of them see what the asked-for consistency promises; the list is always ``local``.
"""

import asyncio
import heapq
from typing import Any

from fastapi import APIRouter, Depends, Request, Response

from api.answers import answer, link_next, read_headers
from api.bodies import check_media_type, decode_json, read_body
from api.freshness import CONSISTENCY_HEADER, DIGEST_HEADER, VERSION_HEADER, Freshness, position_headers
from api.histories import history_page
from api.idempotency import Content, KeyMemory, check_outcome
from api.openapi import BODY_PROBLEMS, FRESHNESS_PROBLEMS, READ_PROBLEMS, WRITE_PROBLEMS, create_body, documented
from api.outcomes import committed_on, origin, raise_aborted, unsettled
from api.parameters import (
    Cursor,
    Fresh,
    HistoryLimit,
    KeyHeader,
    Limit,
    Name,
    Since,
    key_of,
    only,
    read_cursor,
    write_cursor,
)
from api.problems import problem
from api.schemas import (
    Created,
    CreateRepository,
    Deleted,
    HistoryAnswer,
    Listed,
    RefPage,
    RefState,
    Replicas,
    ReplicaState,
    Repository,
    RepositoryPage,
    Unsettled,
)
from node.config import Config
from node.ports.service import Consistency, Service
from node.protocol.change import ChangeKind
from node.protocol.ids import RefName
from node.protocol.names import RepositoryName, check_repo_id, check_writable_ref
from node.protocol.outcome import Outcome, OutcomeKind
from node.protocol.register import Register

ACTOR = "anonymous"
"""Until accounts exist."""

REFS_INLINE_MAX = 5_000
"""More refs than this are sorted in a thread."""


class Repositories:
    """The routes; ``router`` is what the application includes."""

    def __init__(self, service: Service, config: Config) -> None:
        self._service = service
        self._config = config
        self._keys = KeyMemory()
        self.router = APIRouter(tags=["repositories"])
        self._add_routes()

    def _add_routes(self) -> None:
        add, one = self.router.add_api_route, "/repos/{owner}/{repo}"
        nothing = [Depends(only())]
        page = [Depends(only("cursor", "limit"))]
        versions = (VERSION_HEADER, DIGEST_HEADER, CONSISTENCY_HEADER)
        add(
            "/repos",
            self.create,
            methods=["POST"],
            operation_id="createRepository",
            status_code=201,
            dependencies=nothing,
            openapi_extra=create_body(),
            responses=documented(
                {201: Created, 202: Unsettled},
                ("bad-name", "repository-exists", *BODY_PROBLEMS, *WRITE_PROBLEMS),
                headers={202: ("Location",), 201: (VERSION_HEADER, DIGEST_HEADER)},
            ),
        )
        add(
            "/repos",
            self.index,
            methods=["GET"],
            operation_id="listRepositories",
            dependencies=page,
            responses=documented({200: RepositoryPage}, READ_PROBLEMS, headers={200: (CONSISTENCY_HEADER, "Link")}),
        )
        add(
            one,
            self.delete,
            methods=["DELETE"],
            operation_id="deleteRepository",
            dependencies=nothing,
            responses=documented(
                {200: Deleted, 202: Unsettled},
                ("bad-name", "repository-absent", "key-reused", *WRITE_PROBLEMS),
                headers={202: ("Location",), 200: (VERSION_HEADER, DIGEST_HEADER)},
            ),
        )
        for path, endpoint, name, model, dependencies in (
            (one, self.show, "showRepository", Repository, nothing),
            (f"{one}/refs", self.refs, "listRefs", RefPage, page),
            (f"{one}/replicas", self.replicas, "listReplicas", Replicas, nothing),
            (f"{one}/history", self.history, "listHistory", HistoryAnswer, [Depends(only("since", "limit"))]),
        ):
            add(
                path,
                endpoint,
                methods=["GET"],
                operation_id=name,
                dependencies=dependencies,
                responses=documented(
                    {200: model}, ("bad-name", "repository-absent", *FRESHNESS_PROBLEMS), headers={200: (*versions, "Link")}
                ),
            )

    # ------------------------------------------------------------ writes

    async def create(self, request: Request, idempotency_key: KeyHeader = None) -> Response:
        """Create a repository. Answered when a quorum of nodes has it on disk."""
        key = key_of(request)
        check_media_type(request)
        body = await read_body(request, bytes_max=self._config.json_bytes_max, timeout_s=self._config.body_timeout_s)
        asked = decode_json(body, CreateRepository)
        name = RepositoryName.parse(asked.repo_id)
        head = None if asked.head is None else _branch(asked.head)
        content = Content(ChangeKind.CREATE, name.key, head)
        self._keys.check(key, content)
        outcome = await self._service.create(name, actor=ACTOR, head=head, key=key)
        check_outcome(key, content, outcome)
        match outcome.kind:
            case OutcomeKind.COMMITTED:
                return answer(Created(**self._committed(name, outcome)), 201, _version(outcome))
            case OutcomeKind.UNKNOWN:
                return unsettled(name, outcome)
            case OutcomeKind.ABORTED:
                raise_aborted(outcome)
            case OutcomeKind.REJECTED:
                raise problem(
                    "repository-exists",
                    f"{name} cannot be created: {outcome.reason}. Names that differ only by case are one name.",
                    repo_id=str(name),
                )

    async def delete(self, request: Request, name: Name, idempotency_key: KeyHeader = None) -> Response:
        """Delete a repository: its refs are gone when this is answered, its history stays."""
        key = key_of(request)
        content = Content(ChangeKind.DELETE, name.key)
        self._keys.check(key, content)
        outcome = await self._service.delete(name, actor=ACTOR, key=key)
        check_outcome(key, content, outcome)
        match outcome.kind:
            case OutcomeKind.COMMITTED:
                return answer(Deleted(**self._committed(name, outcome)), 200, _version(outcome))
            case OutcomeKind.UNKNOWN:
                return unsettled(name, outcome)
            case OutcomeKind.ABORTED:
                raise_aborted(outcome)
            case OutcomeKind.REJECTED:
                raise problem("repository-absent", repo_id=str(name))

    def _committed(self, name: RepositoryName, outcome: Outcome) -> dict[str, Any]:
        nodes = committed_on(outcome)
        took = origin(outcome, self._config.me)
        return {
            "repo_id": str(name),
            "replicated": outcome.quorum > 1,
            "peers_confirmed": len([node for node in nodes if node != took]),
            "quorum": outcome.quorum,
            "version": outcome.position.version if outcome.position else 0,
            "transaction_id": outcome.txn,
            "committed_on": nodes,
        }

    # ------------------------------------------------------------ reads

    async def _read(self, name: RepositoryName, fresh: Freshness) -> Register:
        return await self._service.read(name, fresh.consistency, fresh.at_least)

    async def index(self, request: Request, cursor: Cursor = None, limit: Limit = 100) -> Response:
        """Existing repositories, as this node knows them (always local)."""
        after = read_cursor(cursor)
        if after:
            _check_cursor_key(after)
        found = await self._service.repositories(after, limit + 1)
        shown = [_listed(register) for register in found[:limit]]
        following = write_cursor(found[limit - 1].repository) if len(found) > limit else None
        headers = read_headers(None, Consistency.LOCAL)
        if following is not None:
            headers |= link_next(request, cursor=following, limit=limit)
        return answer(RepositoryPage(repositories=shown, next=following), headers=headers)

    async def show(self, name: Name, fresh: Fresh) -> Response:
        """One repository."""
        register = await self._read(name, fresh)
        size = await self._service.size_bytes(name)
        shown = Repository(
            repo_id=register.name,
            path=str(self._service.path(register)),
            head=register.head,
            version=register.position.version,
            digest=register.position.digest,
            size=size,
        )
        return answer(shown, headers=read_headers(register, fresh.consistency))

    async def refs(
        self,
        request: Request,
        name: Name,
        fresh: Fresh,
        cursor: Cursor = None,
        limit: Limit = 100,
    ) -> Response:
        """Refs in the order of their names. Pages of one listing may show different versions; each says which."""
        after = read_cursor(cursor)
        register = await self._read(name, fresh)
        if len(register.refs) > REFS_INLINE_MAX:
            names = await asyncio.to_thread(_names_after, register, after, limit + 1)
        else:
            names = _names_after(register, after, limit + 1)
        following = write_cursor(names[limit - 1]) if len(names) > limit else None
        headers = read_headers(register, fresh.consistency)
        if following is not None:
            headers |= link_next(request, cursor=following, limit=limit)
        states = [RefState(name=ref, oid=register.refs[ref].oid, peeled=register.refs[ref].peeled) for ref in names[:limit]]
        shown = RefPage(
            repo_id=register.name, version=register.position.version, head=register.head, refs=states, next=following
        )
        return answer(shown, headers=headers)

    async def replicas(self, name: Name, fresh: Fresh) -> Response:
        """Version, digest and state of the repository on every node."""
        register = await self._read(name, fresh)
        states = [
            ReplicaState(
                node_id=replica.node,
                state=replica.state,
                version=replica.position.version if replica.position else None,
                digest=replica.position.digest if replica.position else None,
                applied=replica.applied,
            )
            for replica in await self._service.replicas(name)
        ]
        position = register.position
        shown = Replicas(repo_id=register.name, version=position.version, digest=position.digest, replicas=states)
        return answer(shown, headers=read_headers(register, fresh.consistency))

    async def history(
        self,
        request: Request,
        name: Name,
        fresh: Fresh,
        since: Since = 0,
        limit: HistoryLimit = 50,
    ) -> Response:
        """Committed changes with their certificates, oldest first."""
        register = await self._read(name, fresh)
        # The journal may be a change ahead of what is applied: an answer shows its version and nothing later.
        entries = [
            entry
            for entry in await self._service.history(name, since, limit)
            if entry.change.position.version <= register.position.version
        ]
        shown = await asyncio.to_thread(history_page, register, entries)
        headers = read_headers(register, fresh.consistency)
        if shown.next is not None:
            headers |= link_next(request, since=shown.next, limit=limit)
        return answer(shown, headers=headers)


def _branch(text: str) -> RefName:
    head = check_writable_ref(text)
    if not head.startswith("refs/heads/"):
        raise problem("invalid-request", "head must name a branch: refs/heads/…")
    return head


def _version(outcome: Outcome) -> dict[str, str]:
    return position_headers(outcome.position)


def _listed(register: Register) -> Listed:
    position = register.position
    return Listed(repo_id=register.name, head=register.head, version=position.version, digest=position.digest)


def _names_after(register: Register, after: str, count: int) -> list[RefName]:
    return heapq.nsmallest(count, (ref for ref in register.refs if ref > after))


def _check_cursor_key(after: str) -> None:
    try:
        check_repo_id(after)
    except ValueError as error:
        raise problem("invalid-request", "The cursor is not one that this API gave.") from error
