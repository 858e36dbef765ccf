"""The checker is checked: bad histories by hand, good ones that look bad, everything small against a checker that is dumb."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, permutations
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.nemesis.bad_histories import BAD, GOOD, Written, parse
from tests.nemesis.history import ZERO, Kind, Operation, Outcome, Update
from tests.nemesis.linearizability import Call, Verdict, check, check_each
from tests.nemesis.repository_model import RepositoryModel, calls_of, pushed

MODEL = RepositoryModel()


def verdict(operations: Sequence[Operation]) -> Verdict:
    return check(MODEL, calls_of(operations)).verdict


@pytest.mark.parametrize("history", BAD, ids=lambda history: history.name)
def test_a_bad_history_is_refused(history: Written) -> None:
    assert verdict(history.operations) is Verdict.NOT_LINEARIZABLE, history.why
    assert not by_brute_force(calls_of(history.operations)), "the dumb checker thinks so, too"


@pytest.mark.parametrize("history", GOOD, ids=lambda history: history.name)
def test_a_good_history_is_taken(history: Written) -> None:
    assert verdict(history.operations) is Verdict.LINEARIZABLE, history.why
    assert len(history.operations) > 8 or by_brute_force(calls_of(history.operations))


@pytest.mark.parametrize("history", BAD, ids=lambda history: history.name)
def test_one_line_makes_a_bad_history_bad(history: Written) -> None:
    """Without it all is well: nothing else is wrong with it than what it is there for."""
    operations = history.operations
    without = [verdict([each for each in operations if each is not left_out]) for left_out in operations]
    assert Verdict.LINEARIZABLE in without


def test_what_could_not_return_is_named() -> None:
    stale = next(history for history in BAD if history.name.startswith("stale"))
    finding = check(MODEL, calls_of(stale.operations))
    assert finding.stuck is not None
    assert finding.stuck.action.client == "B"
    assert finding.states == ((("main", "a"),),)


def test_too_many_configurations_are_undecided_and_said_to_be() -> None:
    """Twelve unknown pushes to refs of their own: each may have happened or not, which is 4,096 states."""
    lines = ["A 0–1 create =committed", *(f"B 2–3 push r{number}:none→x{number} =unknown" for number in range(12))]
    operations = parse("\n".join([*lines, "C 4–5 push last:none→y =committed"]))
    few = check(MODEL, calls_of(operations), configurations_max=1000)
    assert few.verdict is Verdict.UNDECIDED
    many = check(MODEL, calls_of(operations))
    assert many.verdict is Verdict.LINEARIZABLE
    assert 4096 <= many.configurations <= 2 * 4097


def test_objects_are_judged_apart() -> None:
    good, bad = calls_of(GOOD[1].operations), calls_of(BAD[0].operations)
    findings = check_each(MODEL, {"good": good, "bad": bad})
    assert {name: each.verdict for name, each in findings.items()} == {
        "good": Verdict.LINEARIZABLE,
        "bad": Verdict.NOT_LINEARIZABLE,
    }


def test_a_long_history_of_many_clients_is_judged_and_one_stale_read_in_it_found() -> None:
    """10,000 operations of ten clients on one repository, some unknown; then one read near the end is made old."""
    operations = simulated(Random(7), clients=10, count=10_000, unknown=0.01)
    finding = check(MODEL, calls_of(operations))
    assert finding.verdict is Verdict.LINEARIZABLE
    reads = [number for number, each in enumerate(operations) if each.kind is Kind.READ and each.value]
    at = reads[-5]
    operations[at] = replace(operations[at], value=operations[reads[0]].value)
    assert verdict(operations) is Verdict.NOT_LINEARIZABLE


# ---------------------------------------------------------------- against a dumb checker


def by_brute_force(calls: Sequence[Call[Operation]]) -> bool:
    """Every choice of unknown calls, in every order: is one of them possible and true to time?"""
    known = [call for call in calls if not math.isinf(call.end)]
    unknown = [call for call in calls if math.isinf(call.end)]
    for count in range(len(unknown) + 1):
        for chosen in combinations(unknown, count):
            if any(_possible(order) for order in permutations([*known, *chosen])):
                return True
    return False


def _possible(order: Sequence[Call[Operation]]) -> bool:
    state = MODEL.initial
    latest_start = -math.inf
    for call in order:
        if call.end < latest_start:
            return False
        latest_start = max(latest_start, call.start)
        reached = MODEL.step(state, call.action)
        if not reached:
            return False
        (state,) = reached
    return True


REFS = ("main", "dev")
OIDS = st.sampled_from((ZERO, "a", "b"))
TIMES = st.integers(0, 8)


@st.composite
def any_operation(draw: st.DrawFn) -> Operation:
    kind = draw(st.sampled_from((Kind.PUSH, Kind.PUSH, Kind.READ, Kind.READ, Kind.CREATE, Kind.DELETE)))
    start = draw(TIMES)
    updates: tuple[Update, ...] = ()
    value = None
    if kind is Kind.PUSH:
        chosen = draw(st.lists(st.sampled_from(REFS), min_size=1, max_size=2, unique=True))
        updates = tuple(Update(ref, draw(OIDS), draw(OIDS)) for ref in chosen)
    if kind is Kind.READ and draw(st.booleans()):
        table = {ref: draw(OIDS) for ref in REFS}
        value = tuple(sorted((ref, oid) for ref, oid in table.items() if oid != ZERO))
    outcomes = (Outcome.COMMITTED, Outcome.COMMITTED, Outcome.UNKNOWN, Outcome.ABORTED)
    return Operation(
        number=0,
        client="c",
        kind=kind,
        repository="r",
        node=1,
        start=start,
        end=start + draw(st.integers(0, 4)),
        outcome=Outcome.COMMITTED if kind is Kind.READ else draw(st.sampled_from(outcomes)),
        updates=updates,
        value=value,
    )


def simulated(rng: Random, clients: int, count: int, unknown: float) -> list[Operation]:
    """What a correct server would give: every operation has its moment, drawn between its start and its end."""
    drawn = []
    free_at = [0.0] * clients
    for number in range(count):
        client = min(range(clients), key=free_at.__getitem__)
        start = free_at[client] + rng.random()
        end = start + 4 * rng.random()
        free_at[client] = end
        drawn.append((start + (end - start) * rng.random(), start, end, client, number))
    state: dict[str, str] | None = None
    found = []
    for _, start, end, client, number in sorted(drawn):
        said = {"number": number, "client": f"c{client}", "repository": "r", "node": 1, "start": start, "end": end}
        if state is None:
            state = {}
            found.append(Operation(kind=Kind.CREATE, outcome=Outcome.COMMITTED, **said))  # type: ignore[arg-type]
        elif rng.random() < 0.4:
            value = tuple(sorted(state.items()))
            found.append(Operation(kind=Kind.READ, outcome=Outcome.COMMITTED, value=value, **said))  # type: ignore[arg-type]
        elif rng.random() < 0.01:
            state = None
            found.append(Operation(kind=Kind.DELETE, outcome=Outcome.COMMITTED, **said))  # type: ignore[arg-type]
        else:
            ref = rng.choice(REFS)
            update = Update(ref, state.get(ref, ZERO), f"x{number}")
            lost = rng.random() < unknown
            if not lost or rng.random() < 0.5:
                state = dict(pushed(tuple(sorted(state.items())), [update]) or ())
            outcome = Outcome.UNKNOWN if lost else Outcome.COMMITTED
            found.append(Operation(kind=Kind.PUSH, outcome=outcome, updates=(update,), **said))  # type: ignore[arg-type]
    return found


@settings(deadline=None, max_examples=400)
@given(st.lists(any_operation(), max_size=5))
def test_any_small_history_is_judged_as_the_dumb_checker_judges_it(operations: list[Operation]) -> None:
    calls = calls_of(operations)
    assert (check(MODEL, calls).verdict is Verdict.LINEARIZABLE) == by_brute_force(calls)


@settings(deadline=None, max_examples=300)
@given(st.randoms(use_true_random=False), st.integers(1, 4), st.integers(1, 6), st.booleans())
def test_a_small_history_of_a_correct_server_is_judged_as_the_dumb_checker_judges_it(
    rng: Random, clients: int, count: int, spoilt: bool
) -> None:
    """Half of them with one answer changed, so that both verdicts occur."""
    operations = simulated(rng, clients, count, unknown=0.3)
    reads = [number for number, each in enumerate(operations) if each.kind is Kind.READ]
    if spoilt and reads:
        at = rng.choice(reads)
        value = rng.choice([each.value for each in operations] + [(("main", "nobody's"),)])
        operations[at] = replace(operations[at], value=value)
    calls = calls_of(operations)
    judged = check(MODEL, calls).verdict
    assert (judged is Verdict.LINEARIZABLE) == by_brute_force(calls)
    assert spoilt or judged is Verdict.LINEARIZABLE
