"""Every kind of fault that the simulation makes, and how a schedule's weather is drawn.

A fault is counted when it did something: a message that was lost, a write that a power cut took away. A kind that never fired
fails the run. ``Profile`` says how often what happens; a schedule draws one, and then its own amounts, so that no two are
alike. Biased profiles go where random weather seldom does: many take-overs at once, aborts that are overtaken by late
messages, a change that one voter accepted before its coordinator died.
"""

from dataclasses import dataclass
from enum import Enum


class Fault(Enum):
    """One kind of fault."""

    CRASH = "crash"
    """The process dies between any two effects, or at any time; what it wrote is on the disk."""
    POWER_CUT = "crash with unsynced loss"
    """Writes not fsynced are gone: any suffix of the journal's tail, refs, staged files."""
    TORN = "torn record"
    """As above, and the first lost record is half there: its checksum is wrong, it and what is behind it is dropped."""
    FSYNC = "fsync error"
    """A write may be on the disk or not; every later one is refused, until the node is started again."""
    FULL = "disk full"
    """For some time nothing can be written; then there is space again."""
    SLOW = "slow journal"
    """Writes take up to half a second to be fsynced."""
    WIPE = "wipe"
    """The whole disk is gone: the node comes back with a new journal, and must rejoin (R4)."""
    SNAPSHOT = "old snapshot restored"
    """The disk is what it was some time before."""
    FLIP = "bit flip"
    """A row of the journal does not match its checksum any more: noticed at the start, and taken for amnesia."""
    PAUSE = "pause"
    """The process stands still (SIGSTOP); its clock does not."""
    CLOCK = "clock jump"
    """A node's monotonic clock leaps seconds ahead."""
    DRIFT = "clock drift"
    """A node's clock runs up to a fifth too fast or too slow."""
    WALL = "wall clock jump"
    """A node's calendar is days off, either way."""
    DROP = "drop"
    DUPLICATE = "duplicate"
    DELAY = "delay"
    """A message takes seconds, or arrives after its receiver's restart."""
    REORDER = "reorder"
    """A message overtakes an earlier one of the same pair."""
    CUT = "partition both ways"
    ONE_WAY = "partition one way"
    BROKER = "broker restart"
    """Messages in the broker are lost, unless it had confirmed them; publishing waits until it is back."""
    REDELIVERY = "redelivery"
    """Deliveries come again, acknowledged or not."""
    PURGE = "queue purge"
    """Everything on its way to one node is gone."""
    STALL = "stalled publish"
    """What a node sends leaves seconds later, all at once (a memory alarm, TCP back-pressure)."""
    RIVALS = "concurrent coordinators"
    """Several nodes take a write of the same repository in the same instant."""
    SUSPICION = "wrong suspicion"
    """A node believes live peers to be dead."""
    UNSTAGED = "objects out of reach"
    FORGED = "forged message"
    """A message whose signature is another's, or for another receiver; refused by whoever gets it."""
    REPLAYED = "replayed message"
    """A genuine message, again, at any later time."""
    GRUDGE = "grudge"
    """One kind of message between certain nodes is nearly always lost or late: take-overs find the rarest states."""
    AIMED = "aimed crash"
    """A node dies just before a certain effect: before its decision is written, before its commit is sent …"""


@dataclass(frozen=True, slots=True)
class Profile:
    """What a schedule is drawn from. Rates are choices: one of them, evenly, for the whole schedule."""

    name: str
    weight: int
    faults_s: float = 2.5
    pushes: tuple[int, int] = (1, 2)
    rivals: tuple[int, ...] = (0, 1)
    """How often several nodes push at once."""
    reads: tuple[int, ...] = (0, 0, 1, 2)
    loss: tuple[float, ...] = (0.0, 0.02, 0.1)
    double: tuple[float, ...] = (0.0, 0.1)
    late: tuple[float, ...] = (0.0, 0.02)
    network_s: tuple[float, ...] = (0.002, 0.02, 0.2)
    sync_s: tuple[float, ...] = (0.0, 0.0, 0.02)
    crashes: tuple[int, ...] = (0, 0, 1)
    aimed: tuple[int, ...] = (0, 0, 1)
    power: tuple[int, ...] = (0, 0, 1)
    disks: tuple[int, ...] = (0, 0, 0, 1)
    pauses: tuple[int, ...] = (0, 0, 0, 1)
    clocks: tuple[int, ...] = (0, 0, 0, 1)
    cuts: tuple[int, ...] = (0, 0, 1)
    broker: tuple[int, ...] = (0, 0, 0, 1)
    suspicions: tuple[int, ...] = (0, 0, 1)
    amnesia: tuple[int, ...] = (0,)
    """Disks that are lost, of nodes that are then a minority."""
    intruders: tuple[int, ...] = (0, 0, 0, 1)
    """Forged and replayed messages."""
    grudges: tuple[int, ...] = (0, 0, 1)
    against: tuple[str, ...] = ("Claim", "Promise", "Prepare", "Vote", "Vote", "Commit", "Abort")
    """Kinds of messages that a grudge may be borne against."""
    unstaged: tuple[float, ...] = (0.0, 0.0, 0.2)
    withheld: tuple[int, ...] = (0, 0, 0, 1)
    """Nodes that get no objects from anybody for some time."""
    aimed_at: str = ""
    """Before which effect aimed crashes happen; any if empty."""
    down_s: float = 2.0
    """How long who has crashed stays away, at most."""
    sizes: tuple[int, ...] = (3, 3, 3, 3, 5)


PROFILES = (
    Profile("mixed", 4),
    Profile(
        "long",
        1,
        faults_s=6.0,
        pushes=(2, 8),
        rivals=(0, 1),
        crashes=(0, 1, 3),
        cuts=(0, 1, 3),
        suspicions=(0, 1, 3),
        sizes=(1, 2, 3, 3, 4, 5, 5, 6),
    ),
    Profile(
        "storm", 3, faults_s=3.0, pushes=(0, 1), rivals=(1,), suspicions=(1, 2), aimed=(0, 1, 2), grudges=(0, 1), reads=(0,)
    ),
    Profile(
        "late",
        3,
        faults_s=4.0,
        late=(0.1, 0.3),
        double=(0.1, 0.4),
        grudges=(1, 2),
        against=("Vote", "Vote", "Abort", "Prepare", "Claim"),
        pushes=(0, 1),
        rivals=(0, 1),
        reads=(0,),
        withheld=(0, 1),
    ),
    Profile(
        "takeover",
        3,
        faults_s=7.0,
        pushes=(1, 1),
        rivals=(0, 0, 1),
        grudges=(1, 2),
        against=("Vote", "Vote", "Prepare", "Promise"),
        aimed=(1, 2),
        aimed_at="Send Commit",
        down_s=7.0,
        reads=(0, 1),
        withheld=(0, 1, 2),
        loss=(0.0, 0.1, 0.3),
    ),
    Profile("minority", 3, pushes=(1, 2), grudges=(1, 2, 3), aimed=(1, 2), reads=(0, 1), cuts=(0, 1)),
    Profile("power", 2, sync_s=(0.005, 0.05, 0.3), power=(1, 2, 3), disks=(0, 1), pushes=(0, 2), rivals=(1,)),
    Profile(
        "amnesia",
        4,
        faults_s=3.0,
        amnesia=(1, 1, 2, 3),
        late=(0.0, 0.1, 0.3),
        grudges=(0, 1, 2),
        pushes=(1, 2),
        rivals=(0, 1),
        aimed=(0, 1),
        sizes=(3, 3, 3, 5),
    ),
    Profile("broker", 2, broker=(1, 2, 3), intruders=(0, 1, 2), pauses=(0, 1), clocks=(0, 1)),
    Profile(
        "readers",
        3,
        pushes=(1, 2),
        rivals=(0,),
        reads=(3, 6),
        grudges=(1, 2),
        against=("Commit", "Commit", "Vote"),
        aimed=(0, 1),
        cuts=(0, 1),
    ),
)
