"""A push: read its commands, stream its pack into a quarantine, hand both to the quorum, report.

dulwich's own receive-pack handler must not be used: it says "ok" for updates whose compare-and-swap failed, and has no
quarantine. Here every step can refuse, and nothing is left behind when one does; a transaction is begun only for a push that
has at least one command worth it. A client that vanishes before its last byte leaves nothing; once the change is submitted,
the outcome no longer depends on the client. Before objects are called missing, this node has asked whether it is behind.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from http import HTTPStatus

from api.git_body import Budget
from api.git_exchange import Exchange
from api.push_commands import BadPushRequest, PushRequest, PushRequestParser
from api.push_pack import PushPack
from api.report_status import ATOMIC_FAILED, UNPACK_FAILED, every, reasons_of, remark, report, screen, unknown
from api.second_look import SecondLook
from api.side_band import RESULT, SideBand
from node.config import Config
from node.ports.errors import Busy, DiskRefused, NodeError, PackRefused, StorageError
from node.ports.objects import Quarantine, QuarantineIntake
from node.ports.service import Service
from node.protocol.change import RefUpdate
from node.protocol.ids import RefName, TxnId
from node.protocol.names import RepositoryName
from node.protocol.outcome import OutcomeKind

ACTOR = "anonymous"
"""Until accounts exist."""

BUSY = "too busy, nothing was written"

SKIP_BYTES_MAX = 256 * 1024
SKIP_S = 2.0
"""What follows a push that needs no pack, or a refused one, is read away at once if it is short …"""

LINGER_S = 600.0
"""… and behind the report if it is long: git sends its whole pack before it looks at the answer."""


class _Refused(Exception):
    """The whole push stops here; ``unpack`` and ``reasons`` are the report."""

    def __init__(self, unpack: str, reasons: dict[bytes, str]) -> None:
        super().__init__(unpack)
        self.unpack = unpack
        self.reasons = reasons


async def receive_pack(exchange: Exchange, service: Service, config: Config, budget: Budget, name: RepositoryName) -> None:
    """Answer ``POST …/git-receive-pack`` for a repository that exists."""
    pieces = exchange.body.pieces(config.push_commands_bytes_max + config.pack_bytes_max, "the pack")
    with budget.share() as take:
        async with aclosing(pieces):
            request, head = await _read_request(pieces, config.push_commands_bytes_max, take)
            if not request.commands:
                await exchange.body.skip(SKIP_BYTES_MAX, SKIP_S)
                await exchange.answer(HTTPStatus.OK, RESULT, b"")
                return
            look = SecondLook(service, name, exchange.position)
            await _Push(exchange, service, config, name, request, look).run(PushPack(head, pieces, look.moved))


async def _read_request(pieces: AsyncIterator[bytes], bytes_max: int, take: Callable[[int], None]) -> tuple[PushRequest, bytes]:
    """The commands, and the first bytes of the pack that came with them."""
    parser = PushRequestParser(bytes_max)
    async for piece in pieces:
        if request := parser.feed(piece):
            return request, parser.rest()
        take(len(piece))
    raise BadPushRequest("the request ends before its commands do")


class _Push:
    """One push from its commands to its report."""

    def __init__(
        self,
        exchange: Exchange,
        service: Service,
        config: Config,
        name: RepositoryName,
        request: PushRequest,
        look: SecondLook,
    ) -> None:
        self._exchange = exchange
        self._service = service
        self._url = config.client_url
        self._pack_bytes_max = config.pack_bytes_max
        self._name = name
        self._request = request
        self._look = look
        self._band = SideBand(exchange, enabled=request.side_band, quiet=request.quiet)
        self._remark = ""

    async def run(self, pack: PushPack) -> None:
        async with AsyncExitStack() as afterwards:
            # The quarantine goes when the client has its answer: it need not wait for that.
            unpack = "ok"
            try:
                reasons = await self._push(pack, afterwards)
            except _Refused as refused:
                unpack, reasons = refused.unpack, refused.reasons
            finally:
                await self._band.close()
            await self._answer(unpack, reasons)

    async def _answer(self, unpack: str, reasons: dict[bytes, str]) -> None:
        body, request = self._exchange.body, self._request
        if not body.ended:
            await body.skip(SKIP_BYTES_MAX, SKIP_S)
            self._exchange.linger = (self._pack_bytes_max, LINGER_S)
        said = report(request.commands, unpack, reasons) if request.wants_report else b""
        known = [position for position in (self._exchange.position, self._look.position) if position is not None]
        self._exchange.position = max(known, key=lambda position: position.version, default=None)
        await self._band.finish(said, self._remark)

    async def _push(self, pack: PushPack, afterwards: AsyncExitStack) -> dict[bytes, str]:
        """Per ref, why it was not written."""
        updates, reasons = screen(self._request.commands)
        self._stop_if_hopeless(updates, reasons)
        self._stop_if_crowded()
        txn = self._service.new_txn()
        quarantine = await afterwards.enter_async_context(await self._receive(txn, pack))
        updates, faults = await self._examine(quarantine, updates)
        if faults:
            reasons |= {ref.encode(): reason for ref, reason in faults.items()}
            updates = tuple(update for update in updates if update.ref not in faults)
            self._stop_if_hopeless(updates, reasons)
        return reasons | await self._submit(txn, quarantine, updates)

    async def _examine(
        self, quarantine: Quarantine, updates: Sequence[RefUpdate]
    ) -> tuple[tuple[RefUpdate, ...], Mapping[RefName, str]]:
        try:
            fitting, faults = await quarantine.examine(updates)
            if faults and await self._look.moved():
                fitting, faults = await quarantine.examine(updates)
            return fitting, {ref: f"{reason}{self._look.excuse}" for ref, reason in faults.items()}
        except NodeError as error:
            raise self._sayable(error) from error

    def _sayable(self, error: NodeError) -> Exception:
        """Before the answer has begun, a status says it best, but not to git, which shows of a push's status the number only;
        afterwards (a keep-alive begins it) the report must."""
        if isinstance(error, Busy) and self._exchange.stock_git:
            return _Refused(f"{BUSY}: {error}", every(self._request.commands, BUSY))
        if not self._exchange.started:
            return error
        return _Refused(str(error), every(self._request.commands, UNPACK_FAILED))

    def _stop_if_crowded(self) -> None:
        """Before the pack is read: it would be judged in vain."""
        try:
            self._service.check_push(self._name)
        except Busy as error:
            raise self._sayable(error) from error

    def _stop_if_hopeless(self, updates: Sequence[RefUpdate], reasons: dict[bytes, str]) -> None:
        if reasons and self._request.atomic:
            raise _Refused("ok", every(self._request.commands, ATOMIC_FAILED) | reasons)
        if not updates:
            raise _Refused("ok", reasons)

    async def _receive(self, txn: TxnId, pack: PushPack) -> Quarantine:
        try:
            if self._request.sends_pack:
                return await self._index(txn, pack)
            await self._exchange.body.skip(SKIP_BYTES_MAX, SKIP_S)
            self._band.keep_alive()
            return await self._intake(txn).empty()
        except (PackRefused, DiskRefused) as error:
            if pack.fault:
                raise pack.fault from error
            *before, last = str(error).strip().splitlines() or ["refused"]
            if before:
                self._band.say("\n".join(before))
            raise _Refused(last, every(self._request.commands, UNPACK_FAILED)) from error
        except NodeError as error:
            raise self._sayable(error) from error

    async def _index(self, txn: TxnId, pack: PushPack) -> Quarantine:
        try:
            received = await self._intake(txn).receive(self._awaited(pack))
        except PackRefused as error:
            if not (pack.repeatable and await self._look.moved()):
                raise PackRefused(f"{error}{self._look.excuse}") from error
            received = await self._intake(txn).receive(pack.again())
        pack.forget()
        return received

    def _intake(self, txn: TxnId) -> QuarantineIntake:
        return self._service.intake(self._name, txn, self._request.shallow)

    async def _awaited(self, pack: PushPack) -> AsyncIterator[bytes]:
        """The pack's bytes; at their end the client begins to wait."""
        async for piece in pack.stream():
            yield piece
        self._band.keep_alive()

    async def _submit(self, txn: TxnId, quarantine: Quarantine, updates: Sequence[RefUpdate]) -> dict[bytes, str]:
        refs = [update.ref for update in updates]
        atomic = self._request.atomic
        try:
            outcome = await self._service.push(
                self._name, txn, quarantine, updates, actor=ACTOR, atomic=atomic, progress=self._band.progress
            )
        except Busy as error:
            raise self._sayable(error) from error
        except StorageError as error:
            # It was submitted, and may have reached a voter: no word but this one is true.
            return {ref.encode(): f"{unknown(txn, self._url)} ({error})" for ref in refs}
        if outcome.kind is OutcomeKind.COMMITTED and outcome.position is not None:
            self._exchange.position = outcome.position
            self._remark = remark(outcome)
        return reasons_of(outcome, refs, atomic=atomic, url=self._url)
