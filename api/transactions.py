"""``GET /transactions/{id}``: what became of one request, as far as this node or any peer knows."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Response

from api.answers import answer
from api.freshness import CONSISTENCY_HEADER, DIGEST_HEADER, VERSION_HEADER, position_headers
from api.openapi import READ_PROBLEMS, documented
from api.outcomes import votes_of
from api.parameters import TXN_PATTERN, only
from api.problems import problem
from api.schemas import Rejection, TransactionState, at
from node.ports.journal import TransactionRecord
from node.ports.service import Consistency, Service
from node.protocol.names import check_txn_id

TxnPath = Annotated[str, Path(examples=["tx-01jd6w0v9k"], json_schema_extra={"pattern": TXN_PATTERN, "maxLength": 128})]


class Transactions:
    """The route; ``router`` is what the application includes."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.router = APIRouter(tags=["transactions"])
        self.router.add_api_route(
            "/transactions/{transaction_id}",
            self.show,
            methods=["GET"],
            operation_id="showTransaction",
            dependencies=[Depends(only())],
            responses=documented(
                {200: TransactionState},
                ("bad-name", "transaction-absent", *READ_PROBLEMS),
                headers={200: (CONSISTENCY_HEADER, VERSION_HEADER, DIGEST_HEADER)},
            ),
        )

    async def show(self, transaction_id: TxnPath) -> Response:
        """Outcome, votes with their reasons, and how long each phase took."""
        record = await self._service.transaction(check_txn_id(transaction_id))
        if record is None:
            raise problem("transaction-absent")
        headers = {CONSISTENCY_HEADER: Consistency.LOCAL.value, **position_headers(record.position)}
        return answer(state_of(record), headers=headers)


def state_of(record: TransactionRecord) -> TransactionState:
    return TransactionState(
        transaction_id=record.txn,
        repo_id=record.repository,
        kind=record.kind,
        node_id=record.node,
        actor=record.actor,
        submitted_at=at(record.submitted_at_ms),
        outcome=record.outcome.value if record.outcome is not None else None,
        reason=record.reason,
        version=record.position.version if record.position is not None else None,
        digest=record.position.digest if record.position is not None else None,
        ballot=record.ballot,
        quorum=record.quorum,
        votes=votes_of(record.votes),
        rejections=[Rejection(ref=ref, reason=reason) for ref, reason in record.rejections],
        phases_ms=dict(record.phases_ms),
        retry_of=record.retry_of,
        settled_at=at(record.settled_at_ms) if record.settled_at_ms is not None else None,
        settled_by=record.settled_by,
    )
