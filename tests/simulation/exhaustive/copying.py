"""Copies of machines, and keys by which equal machines are recognised.

The machines are ordinary objects. A copy shares whatever is frozen (messages, changes, records) and makes everything else
anew, keeping aliases: a coordinator's ``Doubt`` holds the very ``Proposal`` that is being counted. A key is nested tuples of
the same values; it notes aliases, sorts what has no order, and leaves out what only people read. Two machines with one key
behave alike for ever. Keys are compared, never hashed down: no two different states are ever taken for one.

**Time.** Every step is taken at ``NOW``. After it, every deadline is set to ``FAR``; that a timer fires means that exactly its
deadline is set to the past (``timers.py``). So no time is left in a key, and any timer may fire at any moment, before or after
any other one, whatever the real durations are: more orders than a clock allows, and none fewer.
"""

from collections.abc import Hashable
from dataclasses import fields, is_dataclass
from enum import Enum
from types import MappingProxyType, NoneType
from typing import Any

from node.protocol.change import Change
from node.protocol.register import Register

NOW = 0.0
FAR = 1e6
PAST = -1e6

_PLAIN = (str, bytes, int, float, NoneType, Enum, frozenset, MappingProxyType)
_FOR_PEOPLE = {("Doubt", "reason")}
"""Text that no rule looks at."""
_REASONS = {"noes", "others"}
"""Dictionaries whose values are such text."""
_TIMES = {"held_until", "_until"}
"""Deadlines whose names do not end in ``_at``, as all others' do."""
_TIMING_ONLY = {"_pauses": 0, "_accepted_at": PAST}
"""What only decides how long something waits; the value that it is set to."""


class Keys:
    """Keys of one search: equal frozen values get one number, equal machines one key."""

    def __init__(self) -> None:
        self._number_of: dict[Hashable, int] = {}
        self._by_id: dict[int, int] = {}
        self._kept: list[object] = []
        """Whatever was seen stays alive, so that no other object ever gets its id."""

    def of_value(self, value: Any) -> int:
        """The number of a frozen value."""
        number = self._by_id.get(id(value))
        if number is None:
            number = self._number_of.setdefault(_plain_key(value), len(self._number_of))
            self._by_id[id(value)] = number
            self._kept.append(value)
        return number

    def settle(self, machine: object) -> Hashable:
        """Set every deadline of ``machine`` to ``FAR`` (it is changed), and return its key."""
        return self._key(machine, {})

    def _key(self, thing: Any, seen: dict[int, int]) -> Hashable:
        cls = type(thing)
        shared = _SHARED.get(cls)
        if shared is None:
            shared = _is_shared(cls)
        if shared:
            return thing if cls in _SMALL else (self.of_value(thing),)
        if cls is tuple:
            return tuple([self._key(item, seen) for item in thing])
        number = seen.get(id(thing))
        if number is not None:
            return ("again", number)
        seen[id(thing)] = len(seen)
        if cls is list:
            return ("list", *[self._key(item, seen) for item in thing])
        if cls is dict:
            return ("dict", *[(key, self._key(value, seen)) for key, value in _ordered(thing)])
        if cls is set:
            return ("set", *sorted(thing))
        found: list[Hashable] = [cls.__name__]
        for name in _attributes(thing):
            if name == "_attempts":
                setattr(thing, name, min(getattr(thing, name), 1))  # how many only decides how long the next pause is
                found.append(getattr(thing, name))
            elif name in _TIMING_ONLY:
                setattr(thing, name, _TIMING_ONLY[name])
            elif name.endswith("_at") or name in _TIMES:
                setattr(thing, name, FAR)
            elif name in _REASONS:
                reasons: dict[str, str] = getattr(thing, name)
                for who, text in reasons.items():
                    reasons[who] = "because" if text else ""
                found.append(tuple(sorted(reasons.items())))
            elif (cls.__name__, name) in _FOR_PEOPLE:
                setattr(thing, name, "because" if getattr(thing, name) else "")
                found.append(getattr(thing, name))
            else:
                found.append(self._key(getattr(thing, name), seen))
        return tuple(found)


_SMALL = {str, int, float, NoneType, bool}
_SHARED: dict[type, bool] = {}
_NAMES: dict[type, tuple[str, ...]] = {}


def _is_shared(cls: type) -> bool:
    """Whether objects of this class never change."""
    frozen = is_dataclass(cls) and bool(cls.__dataclass_params__.frozen)  # type: ignore[attr-defined]
    _SHARED[cls] = shared = issubclass(cls, _PLAIN) or frozen
    return shared


def _attributes(thing: object) -> tuple[str, ...]:
    cls = type(thing)
    names = _NAMES.get(cls)
    if names is None:
        if not cls.__module__.startswith("node.protocol"):
            raise TypeError(f"a machine holds a {cls.__name__}, which nobody said how to copy")
        names = tuple(field.name for field in fields(cls)) if is_dataclass(cls) else tuple(sorted(vars(thing)))
        _NAMES[cls] = names
    return names


def copied(thing: Any, seen: dict[int, Any]) -> Any:
    """``thing`` again; ``seen`` keeps aliases within one copy."""
    cls = type(thing)
    shared = _SHARED.get(cls)
    if shared is None:
        shared = _is_shared(cls)
    if shared:
        return thing
    if cls is tuple:
        return tuple([copied(item, seen) for item in thing])
    known = seen.get(id(thing))
    if known is not None:
        return known
    twin: Any
    if cls is list:
        seen[id(thing)] = twin = []
        twin += [copied(item, seen) for item in thing]
    elif cls is dict:
        seen[id(thing)] = twin = {}
        for key, value in thing.items():
            twin[key] = copied(value, seen)
    elif cls is set:
        seen[id(thing)] = twin = set(thing)
    else:
        seen[id(thing)] = twin = object.__new__(cls)
        for name in _attributes(thing):
            value = getattr(thing, name)
            setattr(twin, name, value if _SHARED.get(type(value)) else copied(value, seen))
    return twin


def _ordered(of: dict[Any, Any]) -> list[tuple[Any, Any]]:
    """Sessions (numbered) keep their order of arrival, in which they are looked at; the other dictionaries have none."""
    if len(of) < 2 or isinstance(next(iter(of)), int):
        return list(of.items())
    return sorted(of.items(), key=lambda item: str(item[0]))


def _plain_key(value: Any) -> Hashable:
    """The digest chain says what a change and a register are, since every history of one search begins alike."""
    if isinstance(value, Register | Change):
        return (type(value).__name__, value.position)
    return (type(value).__name__, value)
