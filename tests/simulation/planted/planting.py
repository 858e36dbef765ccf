"""How a rule is taken out of the real core: a method is replaced while a context lasts.

``rewritten`` changes the text of a method and compiles it in its own module. The text must be there exactly once, so a mutation
cannot silently become none when the core changes: then it fails, and is written anew.
"""

import inspect
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any


class Stale(Exception):
    """The core has changed: the text that a mutation replaces is not there any more."""


@dataclass(frozen=True, slots=True)
class Patch:
    """One attribute of one class (or module), and what it becomes."""

    owner: Any
    name: str
    make: Callable[[Any], Any]

    @contextmanager
    def planted(self) -> Iterator[None]:
        original = inspect.getattr_static(self.owner, self.name)
        setattr(self.owner, self.name, self.make(original))
        try:
            yield
        finally:
            setattr(self.owner, self.name, original)


@dataclass(frozen=True, slots=True)
class Mutation:
    """One rule taken out."""

    name: str
    rule: str
    """Where it is written: ``C3`` of replication.md, or a file."""
    removes: str
    """What the cluster does not do any more."""
    patches: tuple[Patch, ...]
    bold: bool = False
    """Whether the rule stands in bold in replication.md."""
    schedule: str = ""
    """What goes wrong then, as replication.md says it in brackets."""
    profile: str = ""
    """The profile of schedules (``faults.py``) that goes where this rule matters; all of them if empty."""
    story: str = ""
    """The directed story (``stories.py``) that breaks without this rule, where random schedules seldom do."""

    @contextmanager
    def planted(self) -> Iterator[None]:
        with ExitStack() as stack:
            for patch in self.patches:
                stack.enter_context(patch.planted())
            yield


def rewritten(owner: type, name: str, *changes: tuple[str, str]) -> Patch:
    """``owner.name`` with pieces of its text replaced, each of which must be there once."""

    def make(original: Any) -> Any:
        is_property = isinstance(original, property)
        function = original.fget if is_property else original
        text = textwrap.dedent(inspect.getsource(function))
        for old, new in changes:
            if text.count(old) != 1:
                raise Stale(f"{owner.__name__}.{name} holds {old!r} {text.count(old)} times, not once")
            text = text.replace(old, new)
        text = text.replace("@property\n", "", 1) if is_property else text
        scope: dict[str, Any] = {}
        exec(compile(text, f"<{owner.__name__}.{name}, mutated>", "exec"), function.__globals__, scope)
        return property(scope[function.__name__]) if is_property else scope[function.__name__]

    return Patch(owner, name, make)


def replaced(owner: Any, name: str, function: Any) -> Patch:
    """``owner.name`` is something else altogether."""
    return Patch(owner, name, lambda _: function)
