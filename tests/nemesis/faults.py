"""What goes wrong, one function a kind: it breaks something, waits, mends it, and returns how often it really struck.

"Really" is looked at: a process is gone or stopped, bytes were held back, the broker says that its alarm is on, the node's own
clock shows the wrong time, its log says that the fault point fired. What did not strike is not counted, and a kind that never
struck fails the run.
"""

import asyncio
import json
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from urllib.error import HTTPError, URLError
from urllib.parse import quote

import pika
import psutil

from broker.topology import VHOST
from node.faults import FaultPoint
from tests.cluster.brokers import ADMIN
from tests.nemesis.field import FREE_BYTES_MIN, NODES, Field
from tests.nemesis.proxy import BROKER, Link, Way

HOLD_S = (1.0, 5.0)
SHORT_HOLD_S = (0.3, 4.0)
DEATH_WAIT_S = 25.0
"""How long an armed node may take to come to its fault point."""
ALARM_WAIT_S = 10.0
REPAIR_TIMEOUT_S = 120.0
REJOIN_TIMEOUT_S = 180.0
"""For as long as the other hand may cut it off from a majority, and what it has to learn."""


@dataclass
class Scene:
    """What a fault has to work with."""

    field: Field
    rng: Random

    def node(self) -> int:
        return self.rng.choice(NODES)

    async def hold(self, low_s: float = HOLD_S[0], high_s: float = HOLD_S[1]) -> None:
        await asyncio.sleep(self.rng.uniform(low_s, high_s))


Act = Callable[[Scene], Awaitable[int]]


@dataclass(frozen=True)
class Kind:
    """One sort of fault. ``hand``: kinds of different hands may strike at the same time."""

    name: str
    hand: str
    act: Act
    needs: str = ""
    """``disks``, ``clocks``, ``rejoining`` or ``repair`` of the field."""
    times: int = 2
    """How often it is in a deck: less often where it stops all writes for long (a broker may take half a minute to start)."""


# ---------------------------------------------------------------- nodes


async def kill(scene: Scene) -> int:
    """One node dies (SIGKILL) and is started again."""
    return await _killed(scene, scene.node())


async def kill_majority(scene: Scene) -> int:
    """Two or all three die in one moment."""
    return await _killed(scene, *scene.rng.sample(NODES, scene.rng.choice((2, 2, 3))))


async def _killed(scene: Scene, *numbers: int) -> int:
    await scene.field.kill(*numbers)
    struck = sum(not scene.field.nodes[number].alive for number in numbers)
    await scene.hold(0.2, 4.0)
    for number in numbers:
        await scene.field.start(number, wait=False)
    for number in numbers:
        await scene.field.ready(number)
    return struck


async def pause(scene: Scene) -> int:
    """SIGSTOP, then SIGCONT: for less than a suspicion takes, or for longer than any deadline."""
    return await _paused(scene, scene.node())


async def pause_majority(scene: Scene) -> int:
    return await _paused(scene, *scene.rng.sample(NODES, 2))


async def _paused(scene: Scene, *numbers: int) -> int:
    field = scene.field
    try:
        for number in numbers:
            field.pause(number)
        await asyncio.sleep(0.05)
        processes = [field.nodes[number].process for number in numbers]
        struck = sum(psutil.Process(each.pid).status() == psutil.STATUS_STOPPED for each in processes if each is not None)
        await scene.hold(*SHORT_HOLD_S)
    finally:
        for number in numbers:
            field.resume(number)
    return struck


def dies_at(point: FaultPoint) -> Act:
    """A node is started so that it dies when it comes to this point, at the first push that leads it there."""

    async def act(scene: Scene) -> int:
        number = scene.node()
        field, node = scene.field, scene.field.nodes[number]
        said = f"fault {point.value} fired"
        before = node.log().count(said)
        await field.kill(number)
        await field.start(number, wait=False, env={"GITQUORUM_FAULT_POINTS": json.dumps([point.value])})
        process = node.process
        assert process is not None
        with suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(process.wait, DEATH_WAIT_S)
        struck = node.log().count(said) - before
        await field.kill(number)  # the dead leave git processes and connections behind; the living one stays armed
        await scene.hold(0.0, 3.0)
        await field.start(number)
        return struck

    act.__doc__ = f"A node dies at its fault point {point.value}."
    return act


async def disk_watermark(scene: Scene) -> int:
    """Free space falls below the node's ``free_bytes_min``."""
    return await _filled(scene, FREE_BYTES_MIN // 2)


async def disk_full(scene: Scene) -> int:
    """Not one block is left: journal, stage and git cannot write."""
    return await _filled(scene, 0)


async def _filled(scene: Scene, leave_bytes: int) -> int:
    number = scene.node()
    node = scene.field.nodes[number]
    try:
        await asyncio.to_thread(scene.field.fill, number, leave_bytes)
        struck = int(node.free_bytes() <= leave_bytes + 1024**2)
        await scene.hold()
    finally:
        scene.field.empty(number)
    if not node.alive:
        await scene.field.kill(number)
        await scene.field.start(number)
    return struck


async def clock_jump(scene: Scene) -> int:
    """A node's wall clock jumps by up to a day, either way, and back; monotonic time goes on, as it does on real machines."""
    number = scene.node()
    offset_s = scene.rng.choice((-1, 1)) * scene.rng.choice((30, 3600, 86_400))
    try:
        scene.field.set_clock(number, offset_s)
        struck = await _offset_shown(scene.field, number, offset_s)
        await scene.hold()
    finally:
        scene.field.set_clock(number, 0)
    return struck


async def _offset_shown(field: Field, number: int, offset_s: int) -> int:
    _, health = await field.get(number, "/health")
    if not health:
        return 0
    shown_s = (datetime.fromisoformat(health["timestamp"]) - datetime.now(UTC)).total_seconds()
    return int(abs(shown_s - offset_s) < 10)


async def wipe(scene: Scene) -> int:
    """A node loses everything on its disk and comes back: it must learn that, and rejoin, before it is worth a vote."""
    number = scene.node()
    before = await scene.field.incarnation(number)
    await scene.field.kill(number)
    await asyncio.to_thread(scene.field.wipe, number)
    await scene.hold(0.0, 3.0)
    return await _rejoined(scene, number, before)


async def restore(scene: Scene) -> int:
    """A node comes back with what it had some time ago: others know more of it than it does."""
    number = scene.node()
    field = scene.field
    await field.kill(number)
    await asyncio.to_thread(field.keep_copy, number)
    await field.start(number)
    before, had = await field.incarnation(number), await field.versions(number)
    await scene.hold(4.0, 10.0)
    has = await field.versions(number)
    await field.kill(number)
    await asyncio.to_thread(field.restore_copy, number)
    if had == has:  # nothing was lost: it may come back as it is
        await field.start(number)
        return 0
    return await _rejoined(scene, number, before)


async def _rejoined(scene: Scene, number: int, before: int) -> int:
    """1 if it did so under a new incarnation. Until it has, nobody else may lose anything: this waits as long as it takes."""
    await scene.field.start(number, wait=False)
    give_up_at = time.monotonic() + REJOIN_TIMEOUT_S
    while time.monotonic() < give_up_at:
        if (await scene.field.get(number, "/readyz"))[0] == 200 and await scene.field.incarnation(number) > before:
            return 1
        await asyncio.sleep(0.3)
    raise RuntimeError(
        f"node-{number} has not rejoined within {REJOIN_TIMEOUT_S:g} s: {(await scene.field.get(number, '/health'))[1]}"
    )


async def flip(scene: Scene) -> int:
    """A bit changes in a pack, an index, a loose object or a ref of a running node; looked for at once, it is found, and the
    repository made whole from the others."""
    number = scene.node()
    names = [name for name in await scene.field.versions(number) if name.startswith("steady/")]
    if not names:
        return 0
    name = scene.rng.choice(sorted(names))
    flipped = await asyncio.to_thread(_flip, scene, number, name)
    if not flipped:
        return 0
    _, first = await scene.field.get(number, f"/repair/{name}")
    struck = int(bool(first) and bool(first.get("found")))
    give_up_at = time.monotonic() + REPAIR_TIMEOUT_S
    while time.monotonic() < give_up_at:
        await scene.field.post(number, f"/repair/{name}")
        status, left = await scene.field.get(number, f"/repair/{name}")
        if status == 200 and not left["found"]:
            return struck
        await asyncio.sleep(1)
    raise RuntimeError(f"node-{number} has not repaired {name} ({flipped}) within {REPAIR_TIMEOUT_S:g} s: {left}")


def _flip(scene: Scene, number: int, name: str) -> str:
    """Where; empty if there was nothing to be had."""
    bare = scene.field.nodes[number].place.data / f"{name}.git"
    files = [path for path in bare.rglob("*") if path.is_file() and _damageable(path.relative_to(bare))]
    with suppress(FileNotFoundError, ValueError):  # it was just replaced, or is empty
        path = scene.rng.choice(sorted(files))
        path.chmod(0o600)
        with path.open("r+b") as file:
            at = scene.rng.randrange(path.stat().st_size)
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 1 << scene.rng.randrange(8)]))
        return f"{path.relative_to(bare)} byte {at}"
    return ""


def _damageable(path: Path) -> bool:
    if path.parts[0] == "objects":
        return path.suffix in (".pack", ".idx") or len(path.parts[-2]) == 2
    return path.parts[0] in ("refs", "packed-refs", "HEAD") and path.suffix != ".lock"


# ---------------------------------------------------------------- broker


async def broker_kill(scene: Scene) -> int:
    """SIGKILL: what was not on its disk is gone."""
    await scene.field.broker_kill()
    return await _started_again(scene)


async def broker_stop(scene: Scene) -> int:
    """It ends in good order."""
    await scene.field.broker_stop()
    return await _started_again(scene)


async def _started_again(scene: Scene) -> int:
    struck = int(scene.field.rabbit.endpoints() is None)
    await scene.hold(0.0, 3.0)
    await scene.field.broker_start()
    return struck


async def broker_pause(scene: Scene) -> int:
    """SIGSTOP: connections stay, nothing moves."""
    at = scene.field.rabbit.endpoints()
    assert at is not None, "the broker runs"
    try:
        scene.field.broker_signal(signal.SIGSTOP)
        await asyncio.sleep(0.05)
        struck = int(psutil.Process(at.pid).status() == psutil.STATUS_STOPPED)
        await scene.hold()
    finally:
        scene.field.broker_signal(signal.SIGCONT)
    return struck


async def broker_alarm(scene: Scene) -> int:
    """Low on memory, or on disk, by its own measure: it reads nothing more from those who publish."""
    memory = scene.rng.random() < 0.5
    on, off, shown = (
        (("set_vm_memory_high_watermark", "0.000001"), ("set_vm_memory_high_watermark", "0.2"), "mem_alarm")
        if memory
        else (("set_disk_free_limit", "900000000000000"), ("set_disk_free_limit", "50000000"), "disk_free_alarm")
    )
    struck = 0
    try:
        await scene.field.ctl(*on)
        give_up_at = time.monotonic() + ALARM_WAIT_S
        while not struck and time.monotonic() < give_up_at:
            await asyncio.sleep(0.5)
            struck = int(any(node.get(shown) for node in await scene.field.api("nodes")))
        await scene.hold()
    finally:
        await scene.field.ctl(*off)
    return struck


async def queue_delete(scene: Scene) -> int:
    """Somebody deletes a node's two queues; it makes them again."""
    struck = 0
    for path in scene.field.queues(scene.node()):
        with suppress(HTTPError, URLError):
            await scene.field.api(path, "DELETE")
            struck += 1
    await scene.hold()
    return struck


async def queue_purge(scene: Scene) -> int:
    """What waits for a node that does not read is thrown away; counts messages. Its connection is broken first, so that also
    those are back in the queue which the broker had sent it."""
    number = scene.node()
    link = scene.field.network.link(f"node-{number}", BROKER)
    try:
        link.cut(Way.BACK)
        await scene.hold(2.0, 5.0)
        await link.refuse()
        await asyncio.sleep(0.5)
        return await asyncio.to_thread(_purge, scene.field, number)
    finally:
        link.mend()
        await link.listen()


def _purge(field: Field, number: int) -> int:
    at = field.rabbit.endpoints()
    assert at is not None, "the broker runs"
    url = f"amqp://{ADMIN}:{quote(field.passwords[ADMIN])}@127.0.0.1:{at.amqp_port}/{quote(VHOST, safe='')}"
    found = 0
    with closing(pika.BlockingConnection(pika.URLParameters(url))) as connection:
        channel = connection.channel()
        for queue in ("inbox", "replies"):
            found += channel.queue_purge(f"gitquorum.node-{number}.{queue}").method.message_count
    return found


# ---------------------------------------------------------------- network


@asynccontextmanager
async def _mended(links: list[Link]):  # type: ignore[no-untyped-def]
    try:
        yield
    finally:
        for link in links:
            link.mend()


async def _cut(scene: Scene, links: list[Link], *ways: Way) -> int:
    """What was held back in the meantime; afterwards it arrives late, or (a coin says it) its connections break."""
    before = sum(link.counts["held"] for link in links)
    async with _mended(links):
        for link in links:
            link.cut(*ways)
        await scene.hold(1.0, 6.0)
        if scene.rng.random() < 0.5:
            for link in links:
                link.reset()
    return sum(link.counts["held"] for link in links) - before


async def isolate(scene: Scene) -> int:
    """One node reaches nobody, and nobody it; its broker connection is dead, too."""
    name, *others = _shuffled(scene)
    return await _cut(scene, scene.field.network.between(name, *others, BROKER), *Way)


async def cut_pair(scene: Scene) -> int:
    """Two nodes do not reach each other; the third reaches both."""
    one, other, _ = _shuffled(scene)
    return await _cut(scene, scene.field.network.between(one, other), *Way)


async def cut_broker(scene: Scene) -> int:
    """One node, or two, cannot reach the broker."""
    names = _shuffled(scene)[: scene.rng.choice((1, 2))]
    return await _cut(scene, [scene.field.network.link(name, BROKER) for name in names], *Way)


async def one_way(scene: Scene) -> int:
    """One node is heard by nobody, but hears; or is heard, and hears nothing."""
    name, *others = _shuffled(scene)
    links = scene.field.network.between(name, *others, BROKER)
    deaf = scene.rng.random() < 0.5
    before = sum(link.counts["held"] for link in links)
    async with _mended(links):
        for link in links:
            link.cut(Way.THERE if (link.asker == name) is not deaf else Way.BACK)
        await scene.hold(1.0, 6.0)
    return sum(link.counts["held"] for link in links) - before


async def delay(scene: Scene) -> int:
    """All that one node says and hears comes late."""
    name, *others = _shuffled(scene)
    return await _delayed(scene, scene.field.network.between(name, *others), scene.rng.uniform(0.02, 1.0))


async def delay_broker(scene: Scene) -> int:
    """Everybody's messages come late."""
    links = [link for link in scene.field.network.links if link.asked == BROKER]
    return await _delayed(scene, links, scene.rng.uniform(0.01, 0.5))


async def _delayed(scene: Scene, links: list[Link], seconds: float) -> int:
    before = sum(link.counts["late"] for link in links)
    async with _mended(links):
        for link in links:
            link.delay(seconds, *Way)
        await scene.hold()
    return sum(link.counts["late"] for link in links) - before


async def reset(scene: Scene) -> int:
    """Connections between nodes, and to the broker, break again and again."""
    network = scene.field.network
    before = network.count("reset")
    for _ in range(scene.rng.randrange(3, 12)):
        scene.rng.choice([link for link in network.links if link.busy] or network.links).reset()
        await asyncio.sleep(0.2)
    return network.count("reset") - before


def _shuffled(scene: Scene) -> list[str]:
    names = [f"node-{number}" for number in NODES]
    scene.rng.shuffle(names)
    return names


KINDS = (
    Kind("kill", "nodes", kill),
    Kind("kill-majority", "nodes", kill_majority, times=1),
    Kind("pause", "nodes", pause),
    Kind("pause-majority", "nodes", pause_majority),
    Kind("die-before-decision", "nodes", dies_at(FaultPoint.BEFORE_DECISION)),
    Kind("die-before-commit-sent", "nodes", dies_at(FaultPoint.BEFORE_COMMIT_SENT)),
    Kind("die-after-accept", "nodes", dies_at(FaultPoint.AFTER_ACCEPT)),
    Kind("disk-watermark", "nodes", disk_watermark, "disks"),
    Kind("disk-full", "nodes", disk_full, "disks"),
    Kind("clock-jump", "nodes", clock_jump, "clocks"),
    Kind("flip", "nodes", flip, "repair"),
    Kind("wipe", "nodes", wipe, "rejoining"),
    Kind("restore", "nodes", restore, "rejoining"),
    Kind("broker-kill", "wires", broker_kill, times=1),
    Kind("broker-stop", "wires", broker_stop, times=1),
    Kind("broker-pause", "wires", broker_pause),
    Kind("broker-alarm", "wires", broker_alarm, times=1),
    Kind("queue-delete", "wires", queue_delete),
    Kind("queue-purge", "wires", queue_purge),
    Kind("isolate", "wires", isolate),
    Kind("cut-pair", "wires", cut_pair),
    Kind("cut-broker", "wires", cut_broker),
    Kind("one-way", "wires", one_way),
    Kind("delay", "wires", delay),
    Kind("delay-broker", "wires", delay_broker),
    Kind("reset", "wires", reset),
)
BY_NAME = {kind.name: kind for kind in KINDS}
