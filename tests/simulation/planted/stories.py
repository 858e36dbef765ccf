"""Directed stories: the shortest schedule that breaks a law when one certain rule is taken out, and goes well with it.

Some rules are covered by others nearly always, so that random schedules need too many tries: two rules must fail to help in
the same instant, or five voters and one order of messages are needed. The commands are those of ``tests/scenarios/script.py``.
A story breaks when a law is broken, or when at its end (or at ``settled``) somebody who is up is in doubt, closed, or stands
elsewhere than the others.
"""

from tests.scenarios.laws import Broken
from tests.scenarios.script import Script
from tests.scenarios.world import World

STORIES: dict[str, str] = {
    # node-1 aborts t1, which node-3 has accepted: none is on node-1's disk only. It loses its round, claims anew, and finds
    # nothing on node-1 and node-2. That proves nothing: node-3 finds t1 with node-2 and finishes it.
    "nothing found": """
        cluster 3
        drop prepare node-1 node-2 99
        drop vote node-3 node-1 99
        drop abort node-1 node-2 99
        drop abort node-1 node-3 99
        push node-1 t1 main - a
        run 0.1
        cut node-3
        run 1.93
        drop promise node-1 node-2 9
        push node-2 t2 topic - b
        run 0.05
        crash node-2
        run 0.01
        start node-2
        run 0.6
        crash node-1
        heal
        run 5
        start node-1
    """,
    # node-2's vote for t1 is kept back; its disk is lost; it rejoins from node-3, 4 and 5, where nothing was accepted.
    # Then node-3 accepts. node-1 must not count the old vote with the new one: t1 is on two disks, and node-4 finds neither.
    "old vote": """
        cluster 5 amnesia
        drop prepare node-1 node-4 99
        drop prepare node-1 node-5 99
        drop prepare node-1 node-3
        hold vote node-2 node-1
        push node-1 t1 main - a
        run 0.1
        wipe node-2
        start node-2
        run 0.007
        cut node-1
        run 0.1
        heal
        drop prepare node-1 node-2 99
        drop commit node-1 node-2 99
        drop commit node-1 node-3 99
        drop commit node-1 node-4 99
        drop commit node-1 node-5 99
        release
        run 0.5
        drop claim node-4 node-1 99
        drop claim node-4 node-3 99
        drop prepare node-4 node-1 99
        drop prepare node-4 node-3 99
        push node-4 t2 topic - b
        run 0.2
    """,
    # t1 is decided by node-1, node-2 and node-3, and only they know. node-1 is dead, node-2 loses its disk and rejoins from the
    # others: it must take over what node-3 has accepted, else node-4 finds nothing with node-2 and node-5.
    "accepted taken over": """
        cluster 5 amnesia
        drop prepare node-1 node-4 99
        drop prepare node-1 node-5 99
        crash node-1 before send commit
        push node-1 t1 main - a
        run 0.1
        wipe node-2
        start node-2
        run 1.2
        drop claim node-4 node-3 99
        drop prepare node-4 node-3 99
        push node-4 t2 topic - b
        run 0.2
        start node-1
    """,
    # node-2 and node-3 promised round 2 to node-4. node-2 rejoins from node-1, node-3 and node-5, and takes over t1 of round 1.
    # Without the promise it votes for t1 again, and then for node-4's t2.
    "promise taken over": """
        cluster 5 amnesia
        drop prepare node-1 node-3 99
        drop prepare node-1 node-4 99
        hold prepare node-1 node-2
        hold prepare node-1 node-5
        push node-1 t1 main - a
        run 0.05
        drop claim node-4 node-1 99
        drop claim node-4 node-5 99
        drop prepare node-4 node-1 99
        drop prepare node-4 node-5 99
        hold prepare node-4 node-2
        hold prepare node-4 node-3
        push node-4 t2 topic - b
        run 0.05
        wipe node-2
        start node-2
        run 0.007
        cut node-4
        run 0.1
        heal
        drop commit node-1 node-2
        drop commit node-1 node-3
        drop commit node-1 node-4
        drop commit node-1 node-5
        release
        run 0.2
    """,
    # node-5 holds t1 of round 1, never decided; node-3 and node-2 hold t2 of round 2, decided by dead node-4. node-2 rejoins
    # from node-1, node-3 and node-5 and must take over t2; else node-5 finds t1 with node-1 and node-2, and finishes it.
    "highest taken over": """
        cluster 5 amnesia
        drop prepare node-1 node-2 99
        drop prepare node-1 node-3 99
        drop prepare node-1 node-4 99
        drop vote node-5 node-1 99
        push node-1 t1 main - a
        run 0.05
        drop claim node-4 node-1 99
        drop claim node-4 node-5 99
        drop prepare node-4 node-1 99
        drop prepare node-4 node-5 99
        crash node-4 before send commit
        push node-4 t2 topic - b
        run 0.1
        wipe node-2
        start node-2
        run 1.2
        drop claim node-5 node-3 9
        drop claim node-1 node-3 9
        push node-5 t3 other - c
        run 0.8
        start node-4
    """,
    # node-3 finds t1 and sends it to node-2 in the same instant in which node-1's abort of it arrives there: the abort may drop
    # what lower ballots staged, not what is being accepted.
    "stage in use": """
        cluster 5
        drop prepare node-1 node-4 99
        drop prepare node-1 node-5 99
        drop vote node-2 node-1 99
        drop vote node-3 node-1 99
        drop abort node-1 node-3 99
        drop abort node-1 node-4 99
        drop abort node-1 node-5 99
        hold abort node-1 node-2
        push node-1 t1 main - a pack
        run 2.01
        drop claim node-3 node-1 99
        drop claim node-3 node-2 99
        hold prepare node-3 node-2
        push node-3 t2 topic - b
        run 0.06
        release
    """,
    # node-2 has accepted t1 for version 2; t2 became version 2 elsewhere. The base of t3 proves t2, and not t1.
    "base of another": """
        cluster 5
        drop prepare node-1 node-3 99
        drop prepare node-1 node-4 99
        drop prepare node-1 node-5 99
        push node-1 t1 main - a
        run 0.1
        crash node-1
        drop claim node-3 node-2
        drop prepare node-3 node-2
        drop commit node-3 node-2
        push node-3 t2 topic - b
        run 0.15
        push node-3 t3 other - c
        run 1
        start node-1
    """,
    # node-1 and node-2 have accepted t1; t2 became version 2 on the others, of whom only node-3 tells node-1 and dies. What
    # node-2 has accepted is no history.
    "history unproved": """
        cluster 5
        drop prepare node-1 node-3 99
        drop prepare node-1 node-4 99
        drop prepare node-1 node-5 99
        push node-1 t1 main - a
        run 0.1
        drop claim node-3 node-1
        drop claim node-3 node-2
        drop prepare node-3 node-1
        drop prepare node-3 node-2
        drop commit node-3 node-2
        push node-3 t2 topic - b
        run 0.057
        crash node-3
        crash node-4
        crash node-5
        run 0.5
        start node-3
        start node-4
        start node-5
    """,
    # node-2 finds the dead node-1's t1 and sends it to node-3; that is lost once. Nobody but node-2 is in doubt.
    "found and lost": """
        cluster 3
        drop prepare node-1 node-3 99
        push node-1 t1 main - a
        run 0.04
        crash node-1
        drop prepare node-2 node-3
        run 8
        settled
    """,
    # node-1 has counted node-2's yes and writes its decision; then node-3's refusal arrives. The decision is made all the
    # same, and node-2 hears of it at once, not when it asks two deadlines later.
    "refused while deciding": """
        cluster 3
        drop claim node-3 node-1 99
        drop claim node-3 node-2 99
        hold refused node-3 node-1
        push node-1 t1 main - a
        run 0.024
        push node-3 t2 topic - b
        run 0.0205
        release
        run 0.001
        crash node-3
        run 0.5
        settled
        start node-3
    """,
    # node-2 decides t1 with its own vote and node-3's, and is set back to before. node-3 has heard of its acceptance with the
    # prepare only; else node-1 and node-2 decide another change.
    "coordinator set back": """
        cluster 3 amnesia
        run 1
        snapshot node-2
        drop prepare node-2 node-1 99
        drop commit node-2 node-1 99
        drop commit node-2 node-3 99
        push node-2 t1 main - a
        run 0.1
        restore node-2
        start node-2
        run 0.1
        drop claim node-1 node-3 99
        drop prepare node-1 node-3 99
        push node-1 t2 topic - b
        run 0.2
    """,
    # node-2 infers t1 from the base of t2, and has no certificate of it; node-1, which has, is gone. node-3 has to learn t1
    # from node-2, because node-2's prepare of t2 names it as the base; else the two that are left settle nothing.
    "proved by a base": """
        cluster 3
        drop commit node-1 node-2 99
        drop commit node-1 node-3 99
        drop prepare node-1 node-3 99
        push node-1 t1 main - a
        run 0.1
        push node-1 t2 topic - b
        run 0.1
        crash node-1
        run 12
        settled
        start node-1
    """,
}


AFTERWARDS = "calm", "run 8", "push {node} last last - d", "run 4"
"""Everything works again; one more push brings everybody to one history. The node that pushes is the last that is up."""


def play(name: str, script: Script | None = None) -> None:
    """Raises ``Broken`` if a law is broken, or something is left unsettled."""
    script = script or Script()
    for line in map(str.strip, STORIES[name].splitlines()):
        if line == "settled":
            _check(script.world)
        elif line:
            script.do(line)
    last = [node.name for node in script.world.nodes.values() if node.open][-1]
    for line in AFTERWARDS:
        script.do(line.format(node=last))
    _check(script.world)


def _check(world: World) -> None:
    nodes = [node for node in world.nodes.values() if node.up]
    for node in nodes:
        world.laws.kept(node.name, node.disk)
        record = node.disk.record
        if not node.open or record.in_doubt is not None or record.committed != nodes[0].disk.record.committed:
            raise Broken(f"at the end {node.name} is not settled: {record}")


def told(name: str) -> list[str]:
    """The transcript, for whoever writes a story."""
    script = Script()
    try:
        play(name, script)
    except Broken as broken:
        return [*script.said, f"BROKEN {broken}"]
    return script.said
