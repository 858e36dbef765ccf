"""``/health``, ``/livez``, ``/readyz``: for people, for supervisors, for load balancers. None of them asks another node.

``/livez`` says only that the event loop turns. ``/readyz`` says whether this node serves (``role=read``), or whether a quorum
for writes is in reach (``role=write``). ``/health`` is a report and always 200: what to conclude is the reader's business.
"""

from datetime import UTC, datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Response

from api.answers import answer
from api.git_problems import GIT_KINDS
from api.openapi import COMMON_PROBLEMS, documented
from api.parameters import only
from api.problems import KINDS, problem
from api.schemas import Alive, Broker, Health, Peer, ProblemKind, Ready
from node.health import Sampler
from node.ports.service import NodeState, Service

Role = Annotated[Literal["read", "write"], Query(description="read: this node serves; write: a quorum is in reach as well.")]


class HealthRoutes:
    """The routes; ``router`` is what the application includes."""

    def __init__(self, service: Service, sampler: Sampler) -> None:
        self._service = service
        self._sampler = sampler
        self.router = APIRouter(tags=["health"])
        nothing = [Depends(only())]
        add = self.router.add_api_route
        add(
            "/health",
            self.health,
            methods=["GET"],
            operation_id="health",
            dependencies=nothing,
            responses=documented({200: Health}, COMMON_PROBLEMS),
        )
        add(
            "/livez",
            self.livez,
            methods=["GET"],
            operation_id="livez",
            dependencies=nothing,
            responses=documented({200: Alive}, COMMON_PROBLEMS),
        )
        add(
            "/readyz",
            self.readyz,
            methods=["GET"],
            operation_id="readyz",
            dependencies=[Depends(only("role"))],
            responses=documented({200: Ready}, ("not-ready", *COMMON_PROBLEMS)),
        )
        add(
            "/problems/{slug}",
            self.explain,
            methods=["GET"],
            operation_id="explainProblem",
            dependencies=nothing,
            responses=documented({200: ProblemKind}, ("no-such-path", *COMMON_PROBLEMS)),
        )

    async def health(self) -> Response:
        """This node's view of itself, its peers and its broker."""
        state, sample = self._service.state(), self._sampler.last
        peers = [
            Peer(node_id=peer.node, url=peer.url, state=peer.state, reason=peer.reason, last_seen_s=peer.last_seen_s)
            for peer in state.peers
        ]
        shown = Health(
            node_id=state.node,
            status=status_of(state),
            cpu_percent=sample.cpu_percent,
            memory_percent=sample.memory_percent,
            peer_count=len(peers),
            peers=peers,
            broker=Broker(name=state.transport, state="up" if state.transport_up else "down", detail=state.transport_detail),
            timestamp=datetime.now(UTC),
            cluster=state.cluster,
            incarnation=state.incarnation,
            quorum=state.quorum,
            voters=list(state.voters),
            ready=state.ready,
            write_ready=state.write_ready,
            problem=state.problem,
            standing=state.standing,
            standing_reason=state.standing_reason,
            standing_since=datetime.fromtimestamp(state.standing_since_ms / 1000, UTC) if state.standing_since_ms else None,
            waits_for=state.waits_for,
        )
        return answer(shown)

    async def livez(self) -> Response:
        """The process answers."""
        return answer(Alive())

    async def readyz(self, role: Role = "read") -> Response:
        """Whether this node serves reads, or (``role=write``) whether a write quorum is in reach as well."""
        state = self._service.state()
        if not state.ready or (role == "write" and not state.write_ready):
            reason = state.problem or ("no write quorum is in reach" if state.ready else "the node is starting")
            raise problem("not-ready", f"{reason[:1].upper()}{reason[1:]}. Try again, or ask another node.", role=role)
        return answer(Ready(role=role))

    async def explain(self, slug: Annotated[str, "one of the problem types"]) -> Response:
        """What a problem type means."""
        kind = KINDS.get(slug) or GIT_KINDS.get(slug)
        if kind is None:
            raise problem("no-such-path")
        return answer(ProblemKind(type=kind.type, status=kind.status, title=kind.title, advice=kind.advice))


def status_of(state: NodeState) -> Literal["ok", "degraded", "starting"]:
    if not state.ready and not state.failed:
        return "degraded" if state.standing in ("rejoining", "stopped") else "starting"
    whole = state.write_ready and state.transport_up and all(peer.state == "alive" for peer in state.peers)
    return "ok" if whole and not state.problem else "degraded"
