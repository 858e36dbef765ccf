"""The application: REST routes in FastAPI, smart HTTP beside them, the edge around both. Built once, by the composition root.

What is switched off, and why: FastAPI's own documentation pages (they load scripts from elsewhere), its redirects for
trailing slashes (a git URL must not be bent), its telemetry (nobody reads it, and it costs on every request).
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import ASGIApp

from api import openapi
from api.drills import Drills
from api.edge import Edge, as_problem
from api.health import HealthRoutes
from api.problems import Problem, problem
from api.rejoin import RejoinRoutes
from api.repair import RepairRoutes
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

    app = _Application(lifespan)
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
    app.add_middleware(Edge, smart_http=smart_http, replicate=None if direct is None else Replicate(direct, config))
    return app


class _Application(FastAPI):
    """FastAPI with problem documents for everything it refuses by itself."""

    def __init__(self, lifespan: Any) -> None:
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
