"""``/scrub`` and ``/repair``: what operators ask of this node about the health of what it stores; for ``gitquorum verify`` and
``repair``. Not part of the public API, so not in its document: nobody is authenticated yet, so keep these paths from clients.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Depends, Response

from api.parameters import Name, only
from node.ports.upkeep import Care, RepairReport


class RepairRoutes:
    """The routes; ``router`` is what the application includes."""

    def __init__(self, care: Care) -> None:
        self._care = care
        self.router = APIRouter(dependencies=[Depends(only())], include_in_schema=False)
        add = self.router.add_api_route
        one = "{owner}/{repo}"
        add("/scrub", self.state, methods=["GET"])
        add("/scrub", self.begin_all, methods=["POST"])
        add(f"/scrub/{one}", self.begin_one, methods=["POST"])
        add(f"/repair/{one}", self.examine, methods=["GET"])
        add(f"/repair/{one}", self.repair, methods=["POST"])

    async def state(self) -> Response:
        """What the scrub does and has done."""
        state = self._care.state()
        return _json({**asdict(state), "reports": [_report(report) for report in state.reports]})

    async def begin_all(self) -> Response:
        """Look at everything now: 202, and the number of the pass."""
        return _json({"run": self._care.begin(None)}, 202)

    async def begin_one(self, name: Name) -> Response:
        """Look at one repository now."""
        return _json({"run": self._care.begin(name.key)}, 202)

    async def examine(self, name: Name) -> Response:
        """What is damaged of it on this node; nothing is touched."""
        plan = await self._care.examine(name.key)
        return _json({"repo_id": str(name), "found": list(plan.found), "would": plan.would})

    async def repair(self, name: Name) -> Response:
        """Look at it, and repair what is found; answered at its end, which may be long after."""
        return _json(_report(await self._care.repair(name.key)))


def _report(report: RepairReport) -> dict[str, Any]:
    return asdict(report)


def _json(body: Mapping[str, Any], status: int = 200) -> Response:
    content = json.dumps(body).encode()
    return Response(content, status_code=status, headers={"Cache-Control": "no-store"}, media_type="application/json")
