"""The bounds: what is explored, by name. Every number is an upper limit on how often something may happen in one run."""

from dataclasses import dataclass, fields

from tests.simulation.exhaustive.happenings import Cost


@dataclass(frozen=True, slots=True)
class Budget:
    """How often each thing may still happen; part of a state. In the order of ``Cost``."""

    crashes: int = 0
    losses: int = 0
    duplicates: int = 0
    """Both only for the check of reductions; see ``Bound.copies``."""
    timers: int = 0
    claims: int = 1
    refusals: int = 0
    gossips: int = 0
    wipes: int = 0

    def less(self, costs: tuple[Cost, ...]) -> "Budget | None":
        """What is left, or ``None`` if it is not enough."""
        if not costs:
            return self
        left = {field.name: getattr(self, field.name) for field in fields(self)}
        for cost in costs:
            left[cost.value] -= 1
        return Budget(**left) if min(left.values()) >= 0 else None


@dataclass(frozen=True, slots=True)
class Bound:
    """One search: a cluster, its clients, and how much may go wrong."""

    name: str
    what: str
    voters: int
    pushes: tuple[tuple[int, str], ...]
    """(node's number, transaction): each push may come in at any time; a name that ends in p carries a pack."""
    budget: Budget
    crashers: tuple[int, ...] = (1,)
    """Who may crash, at any point; each may start again at any time, if ``restarts``."""
    wipers: tuple[int, ...] = ()
    """Whose disk may be lost, at any point."""
    restarts: bool = True
    settlers: tuple[int, ...] = ()
    """Whose timers may fire; nobody else starts a claim. Empty: everybody's."""
    unsettled: tuple[str, ...] = ()
    """Timers that never fire in this search."""
    copies: bool = True
    """Messages may be delivered any number of times, or never. Else once; then the budget counts losses and duplicates."""
    prompt: bool = False
    """The machines hear of a write before anything else happens at their node. A crash before it is durable, and between that
    and their hearing of it, is explored all the same; left out is only what else may reach the node meanwhile."""
    quick: bool = False
    """Complete within seconds: run by ``make test``."""
    reduced: bool = True
    """Whether messages that can have no effect any more are taken away at once (``space.py``)."""


ANYBODY = (1, 2, 3)

_TABLE = (
    Bound(
        "push",
        "a push; any losses and copies; any one timer of anybody",
        3,
        ((1, "t1"),),
        Budget(timers=1, claims=2),
        prompt=True,
        quick=True,
    ),
    Bound(
        "crash",
        "a push; anybody crashes once, at any point, and may start again; any losses and copies; one timer of 1 or 2",
        3,
        ((1, "t1"),),
        Budget(crashes=1, timers=1, claims=2),
        crashers=ANYBODY,
        settlers=(1, 2),
        prompt=True,
        quick=True,
    ),
    Bound(
        "objects",
        "a push with a pack; one staging or one write of anybody fails; any losses and copies; one timer of 1 or 2",
        3,
        ((1, "t1p"),),
        Budget(refusals=1, timers=1, claims=2),
        settlers=(1, 2),
        quick=True,
        prompt=True,
    ),
    Bound(
        "wipe",
        "a push; the disk of 2 is lost at any point, and it rejoins; any losses and copies; no timer",
        3,
        ((1, "t1"),),
        Budget(wipes=1),
        wipers=(2,),
        prompt=True,
        quick=True,
    ),
    Bound(
        "rejoin",
        "a push; the disk of 2 or 3 is lost at any point, and it rejoins; any losses and copies; one timer of 1 or 2",
        3,
        ((1, "t1"),),
        Budget(timers=1, claims=2, wipes=1),
        settlers=(1, 2),
        wipers=(2, 3),
        prompt=True,
    ),
    Bound(
        "takeover",
        "a push; its coordinator crashes at any point and may start again; 2 takes over; any losses and copies; two timers",
        3,
        ((1, "t1"),),
        Budget(crashes=1, timers=2, claims=2),
        settlers=(1, 2),
        prompt=True,
    ),
    Bound(
        "takeover-long",
        "the same, with three timers and three claims",
        3,
        ((1, "t1"),),
        Budget(crashes=1, timers=3, claims=3),
        settlers=(1, 2),
        prompt=True,
    ),
    Bound(
        "takeover-from-above",
        "the coordinator is 3, whose ballots beat those of 1, who takes over; else as takeover",
        3,
        ((3, "t1"),),
        Budget(crashes=1, timers=2, claims=3),
        crashers=(3,),
        settlers=(1, 3),
        prompt=True,
    ),
    Bound(
        "slow-journals",
        "a push; anything may reach a node between a write and its result; any losses and copies; one timer of 1 or 2",
        3,
        ((1, "t1"),),
        Budget(timers=1, claims=2),
        settlers=(1, 2),
    ),
    Bound(
        "slow-journals-crash",
        "the same, and its coordinator crashes at any point",
        3,
        ((1, "t1"),),
        Budget(crashes=1, timers=1, claims=2),
        settlers=(1, 2),
    ),
    Bound(
        "duel",
        "two coordinators with a push each, one claim each; any losses and copies; no timer",
        3,
        ((1, "t1"), (2, "t2")),
        Budget(claims=2),
        prompt=True,
    ),
    Bound(
        "two",
        "two coordinators with a push each; any losses and copies; one timer of either",
        3,
        ((1, "t1"), (2, "t2")),
        Budget(timers=1, claims=3),
        settlers=(1, 2),
        prompt=True,
    ),
    Bound(
        "two-crash",
        "the same, and the first crashes at any point",
        3,
        ((1, "t1"), (2, "t2")),
        Budget(crashes=1, timers=1, claims=3),
        settlers=(1, 2),
        prompt=True,
    ),
    Bound(
        "four",
        "four voters (quorum 3, blocking set 2): a push; its coordinator crashes at any point; 2 takes over; two timers",
        4,
        ((1, "t1"),),
        Budget(crashes=1, timers=2, claims=2),
        settlers=(1, 2),
        prompt=True,
    ),
    Bound(
        "five-push",
        "five voters: a push; any losses and copies; no timer",
        5,
        ((1, "t1"),),
        Budget(claims=1),
        prompt=True,
    ),
    Bound(
        "five",
        "five voters: a push; its coordinator crashes at any point; 2 takes over; one timer",
        5,
        ((1, "t1"),),
        Budget(crashes=1, timers=1, claims=2),
        settlers=(1, 2),
        prompt=True,
    ),
)

BOUNDS = {bound.name: bound for bound in _TABLE}
