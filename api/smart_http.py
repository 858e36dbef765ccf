"""Git smart HTTP as an ASGI application: ``/{owner}/{repo}.git/…``, for stock git clients.

    GET  info/refs?service=git-upload-pack     advertise.py      answered in process
    GET  info/refs?service=git-receive-pack    advertise.py      answered in process
    POST git-upload-pack                       upload_pack.py    ls-refs in process, objects from git
    POST git-receive-pack                      receive_pack.py   the quorum decides

This file knows paths, headers and which refusal has which status. It never touches disk or git: ``ports.Service`` does.
Everything else under ``.git/`` is the dumb protocol, which is not served: it would show files of a repository that lags.
References: gitprotocol-http(5), git-http-backend(1).
"""

import asyncio
import re
from contextlib import suppress
from urllib.parse import parse_qs

import structlog
from starlette.types import Receive, Scope, Send

from api import advertise
from api.fetch_request import BadFetchRequest
from api.freshness import CONSISTENCY_HEADER, MIN_VERSION_HEADER, Freshness, freshness_of
from api.git_body import BodyMalformed, BodyRefused, BodyTimeout, BodyTooLarge, Budget, ClientGone
from api.git_exchange import ClientStalled, Exchange
from api.git_problems import git_problem
from api.pkt import BadPktLine, TooManyBytes
from api.problems import Problem, problem
from api.push_commands import BadPushRequest
from api.receive_pack import receive_pack
from api.upload_pack import RESULT, send_pieces, upload_pack
from node.config import Config
from node.ports.errors import Busy, ReadRefused, ReadUnavailable, RepositoryAbsent, StorageError, VersionNotReached
from node.ports.service import Consistency, Service
from node.protocol.names import BadRepositoryName, RepositoryName
from node.protocol.register import Register

GATHERED_BYTES_MAX = 64 * 1024**2
"""Command lists and want/have lists of all clients together; an honest one is a few KB."""

QUERY_FIELDS_MAX = 16

_PATH = re.compile(r"/([^/]+)/([^/]+)\.git/(.+)", re.DOTALL)
_SERVICES = {"git-upload-pack", "git-receive-pack"}
_FRESHNESS = (CONSISTENCY_HEADER.lower().encode(), MIN_VERSION_HEADER.lower().encode())

_FAILURES = (
    Problem, BadRepositoryName, RepositoryAbsent, ReadUnavailable, Busy, StorageError,
    BadPktLine, BadPushRequest, BadFetchRequest, BodyRefused,
)  # fmt: skip

log = structlog.get_logger(__name__)


READ_TO_PUSH_S = 0.3
"""How long a push waits to be compared with the newest refs: silent peers must not be paid for twice within its deadline."""


class SmartHttp:
    """The application."""

    def __init__(self, service: Service, config: Config) -> None:
        self._service = service
        self._config = config
        self._budget = Budget(max(GATHERED_BYTES_MAX, config.fetch_request_bytes_max, config.push_commands_bytes_max))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send, self._config)
        try:
            try:
                await self._dispatch(exchange, scope)
            except _FAILURES as error:
                if isinstance(error, ClientGone):
                    return
                if exchange.started:
                    log.warning("answer cut short", path=scope["path"], reason=str(error))
                    return
                if isinstance(error, ReadRefused) and error.position is not None:
                    exchange.position = error.position
                fetching = scope["path"].endswith(".git/git-upload-pack")
                await exchange.refuse(_problem(error), in_band=RESULT if fetching else b"")
        except ClientStalled as stalled:
            log.info("client gave up on", path=scope["path"], reason=str(stalled))

    async def _dispatch(self, exchange: Exchange, scope: Scope) -> None:
        match = _PATH.fullmatch(scope["path"].removeprefix(scope.get("root_path", "")))
        if match is None:
            raise problem("no-such-path")
        name = RepositoryName.parse(f"{match[1]}/{match[2]}")
        what = match[3]
        if what == "info/refs":
            _check_method(exchange, "GET", "HEAD")
            await self._advertise(exchange, name, scope["query_string"])
        elif what in _SERVICES:
            _check_method(exchange, "POST")
            _check_media_type(exchange, what)
            await self._serve(exchange, name, what)
        else:
            raise git_problem("dumb-http")

    async def _advertise(self, exchange: Exchange, name: RepositoryName, query: bytes) -> None:
        service = _service(query)
        fresh = _freshness(exchange, self._config)
        if service == "git-receive-pack":
            self._service.check_push(name)
            pieces = advertise.receive_pack(await self._read_to_push(exchange, name, fresh))
        elif _protocol_version(exchange) == 2:
            await self._look(exchange, name, fresh)
            pieces = iter((advertise.upload_pack_v2(),))
        else:
            pieces = advertise.upload_pack_v0(await self._read(exchange, name, fresh))
        await send_pieces(exchange, f"application/x-{service}-advertisement".encode(), pieces)

    async def _serve(self, exchange: Exchange, name: RepositoryName, what: str) -> None:
        fresh = _freshness(exchange, self._config)
        if what == "git-upload-pack":
            version = _protocol_version(exchange)

            async def read() -> Register:
                return await self._read(exchange, name, fresh)

            await upload_pack(exchange, self._service, self._config, self._budget, version, read)
            return
        await self._find(exchange, name)
        await receive_pack(exchange, self._service, self._config, self._budget, name)

    async def _read(self, exchange: Exchange, name: RepositoryName, fresh: Freshness) -> Register:
        """The question to the others, once for each request that shows refs or objects. A fetch after an advertisement asks
        again: a later request must not rely on an earlier one's answer (R5), and git fetches exact ids without any look at
        the refs before."""
        exchange.consistency = fresh.consistency
        register = await self._service.read(name, fresh.consistency, fresh.at_least)
        exchange.position = register.position
        return register

    async def _look(self, exchange: Exchange, name: RepositoryName, fresh: Freshness) -> None:
        """For the capabilities of v2, which show nothing of a repository but that it exists: refs are asked for by a request
        of their own, and that one asks the others. It is still refused here what would be refused there: git prints it best."""
        register = await self._service.look(name, fresh.consistency)
        exchange.position, exchange.consistency = register.position, Consistency.LOCAL

    async def _read_to_push(self, exchange: Exchange, name: RepositoryName, fresh: Freshness) -> Register:
        """What a push is compared with. Without a majority in reach what this node knows will do: the coordinator looks at
        the old values again, and it is the one to say, ref by ref, which nodes a quorum lacks. Only a no is the others' to
        say, however long they take: the repository may be new, and not known here yet."""
        try:
            async with asyncio.timeout(READ_TO_PUSH_S):
                return await self._read(exchange, name, fresh)
        except VersionNotReached:
            raise
        except (ReadUnavailable, TimeoutError):
            with suppress(RepositoryAbsent):
                return await self._read(exchange, name, Freshness(Consistency.LOCAL, fresh.at_least))
        return await self._read(exchange, name, fresh)

    async def _find(self, exchange: Exchange, name: RepositoryName) -> None:
        """Whether there is something to push to. What this node knows is enough for a yes: the coordinator looks at
        everything else again; only a no is worth a question to the others."""
        try:
            register = await self._service.read(name, Consistency.LOCAL)
        except RepositoryAbsent:
            register = await self._service.read(name, Consistency.LINEARIZABLE)
        exchange.position = register.position


def _problem(error: Exception) -> Problem:
    match error:
        case Problem():
            return error
        case BadRepositoryName():
            return problem("bad-name", str(error))
        case RepositoryAbsent():
            return problem("repository-absent", str(error))
        case VersionNotReached():
            return problem("version-not-reached", str(error))
        case ReadUnavailable():
            return problem("read-unavailable", str(error))
        case Busy():
            return problem("busy", str(error))
        case StorageError():
            return problem("storage-failed", str(error))
        case TooManyBytes() | BodyTooLarge():
            return problem("body-too-large", str(error))
        case BodyTimeout():
            return problem("request-timeout", str(error))
        case BadPktLine() | BadPushRequest() | BadFetchRequest() | BodyMalformed():
            return git_problem("malformed-git-request", str(error))
    raise error


def _check_method(exchange: Exchange, *allowed: str) -> None:
    if exchange.method not in allowed:
        raise problem("method-not-allowed", headers={"Allow": ", ".join(allowed)})


def _check_media_type(exchange: Exchange, service: str) -> None:
    expected = f"application/x-{service}-request"
    given = exchange.headers.get(b"content-type", b"").decode("latin-1")
    if given != expected:
        raise git_problem("git-media-type", f"expected POST with Content-Type '{expected}'")


def _service(query: bytes) -> str:
    try:
        fields = parse_qs(query.decode("ascii"), keep_blank_values=True, max_num_fields=QUERY_FIELDS_MAX)
    except ValueError:
        raise git_problem("unsupported-service", "the query cannot be read") from None
    match fields.get("service"):
        case None:
            raise git_problem("dumb-http")
        case [service] if service in _SERVICES:
            return service
        case given:
            raise git_problem("unsupported-service", f"unsupported service: {given[0][:100]!r}")


def _protocol_version(exchange: Exchange) -> int:
    """Of ``Git-Protocol``, a list of words between colons; 1 only adds a line that says so, and is answered as 0."""
    words = exchange.headers.get(b"git-protocol", b"").split(b":")
    return 2 if b"version=2" in words else 0


def _freshness(exchange: Exchange, config: Config) -> Freshness:
    """``Exchange`` has joined headers that were given twice by a comma, which neither value may hold."""
    values = (exchange.headers.get(name) for name in _FRESHNESS)
    consistency, min_version = ([] if value is None else [value.decode("latin-1")] for value in values)
    return freshness_of(consistency, min_version, config)
