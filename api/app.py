"""The application: REST routes in FastAPI, git and peers beside it, an edge around each. Built once, by the composition root.

What is switched off, and why: FastAPI's own documentation pages (they load scripts from elsewhere), its redirects for
trailing slashes (a git URL must not be bent), its telemetry (nobody reads it, and it costs on every request).
"""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send

from api import openapi
from api.drills import Drills
from api.edge import Edge, as_problem
from api.health import HealthRoutes
from api.problems import Problem, problem
from api.rejoin import RejoinRoutes
from api.repair import RepairRoutes
from api.replicate import PATH as REPLICATE_PATH
from api.replicate import Replicate
from api.repos import Repositories
from api.transactions import Transactions
from node.config import Config
from node.health import Sampler
from node.isolation import Isolation
from node.ports.service import Service
from node.ports.transport import DirectEndpoint
from node.ports.upkeep import Care, Rejoins

VERSION = "1.0.0"
"""Of the API, not of the program."""

ERRORS_SHOWN_MAX = 8

_SMART_PATH = re.compile(r"/[^/]+/[^/]+\.git(/.*)?", re.DOTALL)


def create_app(
    service: Service,
    config: Config,
    *,
    direct: DirectEndpoint | None = None,
    smart_http: ASGIApp | None = None,
    care: Care | None = None,
    rejoins: Rejoins | None = None,
    isolation: Isolation | None = None,
) -> FastAPI:
    """All that the node's one port serves; ``isolation`` where drills are allowed."""
    sampler = Sampler()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await sampler.start()
        try:
            yield
        finally:
            await sampler.stop()

    app = _Application(lifespan, smart_http, None if direct is None else Replicate(direct, config))
    routers = [HealthRoutes(service, sampler).router, Repositories(service, config).router, Transactions(service).router]
    if care is not None:
        routers.append(RepairRoutes(care).router)
    if rejoins is not None:
        routers.append(RejoinRoutes(rejoins, config).router)
    if isolation is not None:
        routers.append(Drills(isolation, config).router)
    for router in routers:
        app.include_router(router)
    app.state.config = config
    app.state.routers = routers  # FastAPI keeps them wrapped, without their methods; a 405 has to name those
    app.add_middleware(Edge, rest=True)
    return app


class _Application(FastAPI):
    """FastAPI with problem documents for everything it refuses by itself. ``smart_http`` and ``replicate`` are served beside
    it: what it does with a request costs more than all that is done for a peer's question."""

    def __init__(self, lifespan: Any, smart_http: ASGIApp | None, replicate: ASGIApp | None) -> None:
        self._smart_http = None if smart_http is None else Edge(smart_http)
        self._replicate = None if replicate is None else Edge(replicate)
        super().__init__(
            title="gitquorum",
            version=VERSION,
            description=openapi.DESCRIPTION,
            docs_url=None,
            redoc_url=None,
            redirect_slashes=False,
            lifespan=lifespan,
            telemetry={"tracing": False, "metrics": False, "logs": False, "operation_spans": False},
            exception_handlers={
                Problem: _explain,
                HTTPException: _explain_status,
                RequestValidationError: _explain_validation,
            },
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if self._smart_http is not None and _SMART_PATH.fullmatch(scope["path"]):
                return await self._smart_http(scope, receive, send)
            if self._replicate is not None and scope["path"].startswith(REPLICATE_PATH):
                return await self._replicate(scope, receive, send)
        await super().__call__(scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        return openapi.document(self)


def _written(what: Problem, request: Request) -> Response:
    return what.response(path=request.url.path, request_id=request.state.request_id)


async def _explain(request: Request, error: Exception) -> Response:
    return _written(as_problem(error), request)


async def _explain_status(request: Request, error: Exception) -> Response:
    """What the router refuses: unknown paths, and methods a path does not have."""
    assert isinstance(error, HTTPException)
    match error.status_code:
        case 404:
            return _written(problem("no-such-path"), request)
        case 405:
            return _written(problem("method-not-allowed", headers={"Allow": ", ".join(_methods_of(request))}), request)
        case _:
            return _written(problem("bad-framing", str(error.detail)), request)


def _methods_of(request: Request) -> list[str]:
    """All methods of a path. Starlette names those of the first route that has the path; RFC 9110 (10.2.1) wants all."""
    found: set[str] = set()
    for router in request.app.state.routers:
        for route in router.routes:
            if route.matches(request.scope)[0] is not Match.NONE:
                found |= getattr(route, "methods", None) or set()
    return sorted(found)


async def _explain_validation(request: Request, error: Exception) -> Response:
    """Which parameters are wrong and why; never what was sent."""
    assert isinstance(error, RequestValidationError)
    found = [
        {"where": " ".join(str(part)[:64] for part in one["loc"][:2]), "reason": str(one["msg"])[:200]}
        for one in error.errors()[:ERRORS_SHOWN_MAX]
    ]
    said = "; ".join(f"{one['where']}: {one['reason']}" for one in found)
    return _written(problem("invalid-request", f"{said}.", errors=found), request)


def bare_app() -> FastAPI:
    """Routes without a node behind them, for the OpenAPI document: nothing may be asked of it."""
    return create_app(None, None)  # type: ignore[arg-type]
