"""A way through a space, told line by line: what happened, to whom, and what left the node."""

from collections.abc import Iterator, Sequence

from node.protocol.acceptor import Op
from node.protocol.messages import AcceptorPage, AcceptorRecords, Enrol, Enrolment
from tests.scenarios.words import describe, describe_op, describe_record
from tests.simulation.exhaustive import happenings as hp
from tests.simulation.exhaustive.settling import Settling
from tests.simulation.exhaustive.space import Move, Next, Space


def told(space: Space, path: Sequence[int]) -> Iterator[str]:
    """Every step of ``path``, and what is broken at its end."""
    state = space.first()
    for number, turn in enumerate(path, 1):
        after, broken, move = in_order(space, state)[turn]
        yield f"{number:3}  {_line(space, state, move)}"
        if broken:
            yield f"     BROKEN: {broken}"
            return
        state = after
    yield from _ending(space, state)


def in_order(space: Space, state: bytes) -> list[Next]:
    """The ways out of a state in the order of their words: the same in every search, whatever it saw before."""
    return sorted(space.successors(state), key=lambda way: _line(space, state, way[2]))


def _ending(space: Space, state: bytes) -> Iterator[str]:
    *row, net, said = space.unpacked(state)
    parts = space.parts
    for number in row:
        local = space.parts.locals[number]
        yield f"     {local.me} {'up' if local.up else 'down'}: {describe_record(local.record)}; {local.coordinator!r}"
    flying = [parts.parcels[parcel] for parcel in space.nets[net]]
    yield from sorted(f"     on its way: {one.sender} → {one.to}: {_letter(one.message)}" for one in flying)
    if broken := space.law(row, said):
        yield f"     BROKEN: {broken}"
    elif space.at_rest(row) and (problem := Settling(space).problem(row, said)):
        yield f"     BROKEN: {problem}"


def _line(space: Space, state: bytes, move: Move) -> str:
    n, what, result, lost, doubled = move
    row = space.unpacked(state)
    local = space.parts.locals[row[n]]
    happening = space.parts.parcels[what] if isinstance(what, int) else what
    left = [
        f"→ {space.parts.parcels[p].to}: {_letter(space.parts.parcels[p].message)}{' (LOST)' if at == lost else ''}"
        for at, p in enumerate(result.parcels)
    ]
    left += [_fact(fact) for fact in result.facts]
    op = local.writes[0].op if local.writes else None
    return f"{local.me} {_words(happening, op)}{' (a copy stays on its way)' if doubled else ''}" + "".join(
        f"\n       {line}" for line in (*left, *([f"CRASHED {result.cut}"] if result.cut else []))
    )


def _words(happening: hp.Happening, op: Op | None) -> str:
    match happening:
        case hp.Parcel(sender, _, message):
            return f"from {sender}: {_letter(message)}"
        case hp.Submit(txn):
            return f"client asks for {txn}"
        case hp.Hear(refused):
            what = describe_op(op) if op else "?"
            return f"disk full: {what} refused" if refused else f"hears: {what} is durable"
        case hp.Timer(name, request):
            return f"timer: {name}" + (f" (request {request})" if request else "")
        case hp.Learn(entries, _, told_):
            return f"learns up to version {entries[-1].change.position.version}" + (" (gossip)" if told_ else "")
        case hp.Crash(durable):
            return f"CRASHED, {durable} writes under way were durable"
        case hp.Start():
            return "STARTED"
        case hp.Wipe():
            return "WIPED: its disk is empty"
        case hp.Restored():
            return "takes over what its sources hold"
        case hp.Staged(problem):
            return f"staging ended: {problem or 'objects are here'}"


def _letter(message: hp.Letter) -> str:
    if isinstance(message, Enrol | AcceptorRecords | Enrolment | AcceptorPage):
        return str(message)
    return describe(message)


def _fact(fact: hp.Fact) -> str:
    match fact:
        case hp.Committed(position):
            return f"journal holds version {position.version} ({position.digest[:8]})"
        case hp.Decided(position):
            return f"DECIDED version {position.version} ({position.digest[:8]})"
        case hp.Undone(position):
            return f"certainly aborted: {position.version} ({position.digest[:8]})"
        case hp.Told(txn, kind, position):
            return f"ANSWER {txn} {kind.value}" + (f" at version {position.version}" if position else "")
