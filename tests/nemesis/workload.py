"""What the clients do: a town of repositories that come and go, and people who push, read, delete and create in them.

Everybody works on what is newest to the town's knowledge, so that two often replace the same value; some push on old values on
purpose. A repository retires after so many operations, which keeps each history short enough to be judged as a whole; one of
the living ones is deleted and created again and again.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.nemesis.clients import Client, Recorder
from tests.nemesis.commits import Commits
from tests.nemesis.git_client import GitClient
from tests.nemesis.history import ZERO, Kind, Operation, Outcome, Update

REFS = ("refs/heads/main", "refs/heads/dev", "refs/tags/t")
STEADY = 3
OPERATIONS_MAX = 400
CHURN_OPERATIONS_MAX = 150
LARGE_BYTES = 150_000
"""Above 64 KiB: the pack goes by claim check."""
OLD_KEPT = 20
PAUSE_S = (0.02, 0.15)
"""Between two operations of a client."""
REFUSED_PAUSE_S = 0.3
"""And longer after one that the cluster could not do: its answer came at once, and would again."""


@dataclass
class Repository:
    """What the town knows of it; ``latest`` may be wrong."""

    name: str
    churns: bool
    operations_left: int
    exists: bool = False
    latest: dict[str, str] = field(default_factory=dict)
    old: list[Update] = field(default_factory=list)

    def learn(self, operation: Operation) -> None:
        """From an answer that says something for certain."""
        if operation.outcome is Outcome.REJECTED and operation.kind is Kind.CREATE:
            self.exists = True
        if operation.outcome is not Outcome.COMMITTED or operation.kind is Kind.LOCAL_READ:
            return
        match operation.kind:
            case Kind.READ:
                self.exists = operation.value is not None
                self.latest = dict(operation.value or ())
            case Kind.CREATE | Kind.DELETE:
                self.exists = operation.kind is Kind.CREATE
                self.latest = {}
            case Kind.PUSH:
                for update in operation.updates:
                    self.old = [*self.old[-OLD_KEPT:], update]
                    self.latest[update.ref] = update.new
                    if update.new == ZERO:
                        del self.latest[update.ref]


class Town:
    """All repositories of a run."""

    def __init__(self) -> None:
        self._count = 0
        self.living: list[Repository] = []
        self.all: list[Repository] = []
        for number in range(STEADY + 1):
            self._found(churns=number == STEADY)

    def _found(self, churns: bool) -> None:
        self._count += 1
        name = f"{'churn' if churns else 'steady'}/r{self._count}"
        self.living.append(Repository(name, churns, CHURN_OPERATIONS_MAX if churns else OPERATIONS_MAX))
        self.all.append(self.living[-1])

    def visit(self, rng: Random) -> Repository:
        """One of the living; its last visit retires it."""
        repository = rng.choice(self.living)
        repository.operations_left -= 1
        if repository.operations_left <= 0:
            self.living.remove(repository)
            self._found(repository.churns)
        return repository


class Person:
    """A client of HTTP with a will."""

    def __init__(self, number: int, seed: int, urls: Mapping[int, str], town: Town, recorder: Recorder) -> None:
        self._rng = Random(f"{seed}/person/{number}")
        self._town = town
        self._nodes = tuple(urls)
        self._commits = Commits(f"person-{number} of {seed}", self._rng)
        self.client = Client(f"person-{number}", urls, recorder)

    async def live(self, until: asyncio.Event) -> None:
        while not until.is_set():
            repository = self._town.visit(self._rng)
            done = await self._act(repository)
            repository.learn(done)
            refused = done.outcome in (Outcome.UNSENT, Outcome.ABORTED)
            await asyncio.sleep(self._rng.uniform(*PAUSE_S) + (REFUSED_PAUSE_S if refused else 0.0))

    async def _act(self, repository: Repository) -> Operation:
        rng, client, node = self._rng, self.client, self._rng.choice(self._nodes)
        if not repository.exists and rng.random() < 0.8:
            return await client.create(node, repository.name)
        draw = rng.random()
        if repository.churns and draw < 0.10:
            return await (client.delete if rng.random() < 0.7 else client.create)(node, repository.name)
        if draw < 0.40:
            return await client.read(node, repository.name, raw=rng.random() < 0.5)
        if draw < 0.50:
            return await client.read(node, repository.name, raw=rng.random() < 0.5, local=True)
        if draw < 0.55 and repository.old:
            return await self._push_on_old(repository, node)
        if draw < 0.60 and repository.latest:
            ref = rng.choice(sorted(repository.latest))
            return await client.push(node, repository.name, (Update(ref, repository.latest[ref], ZERO),), b"")
        chosen = rng.sample(REFS, 2 if draw < 0.68 else 1)
        return await self._push(repository, node, {ref: repository.latest.get(ref, ZERO) for ref in chosen})

    async def _push(self, repository: Repository, node: int, olds: Mapping[str, str]) -> Operation:
        size = LARGE_BYTES if self._rng.random() < 0.03 else 60
        commits = self._commits.on(list(olds.values()), size)
        updates = tuple(Update(ref, old, commit.oid) for (ref, old), commit in zip(olds.items(), commits, strict=True))
        return await self.client.push(node, repository.name, updates, commits[-1].pack)

    async def _push_on_old(self, repository: Repository, node: int) -> Operation:
        """A value that was replaced some time ago, most likely."""
        update = self._rng.choice(repository.old)
        return await self._push(repository, node, {update.ref: update.old})


class GitUser:
    """Somebody who uses stock git."""

    def __init__(self, number: int, seed: int, urls: dict[int, str], town: Town, recorder: Recorder, folder: Path) -> None:
        self._rng = Random(f"{seed}/git/{number}")
        self._town = town
        self._nodes = tuple(urls)
        self.client = GitClient(f"git-{number}", urls, recorder, folder)

    async def live(self, until: asyncio.Event) -> None:
        while not until.is_set():
            repository = self._town.visit(self._rng)
            node = self._rng.choice(self._nodes)
            if self._rng.random() < 0.4:
                done: Operation | None = await self.client.read(node, repository.name)
            else:
                done = await self.client.push(node, repository.name, self._rng.choice(REFS))
            if done is not None:
                repository.learn(done)
            await asyncio.sleep(self._rng.uniform(*PAUSE_S))
