"""Python values to JSON values and back, by their annotations.

A member that this package does not know is passed over and an enum's new value is handed on as
it is, so that an older client works with a newer server.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import (
    Any,
    ClassVar,
    Dict,
    List,
    Mapping,
    Protocol,
    Sequence,
    Tuple,
    Type,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from ._errors import ProtocolError


class HasFileno(Protocol):
    """A file, a socket, or whatever else leads to a file descriptor."""

    def fileno(self) -> int:
        """Its number."""


Fd = Union[int, HasFileno]
"""A file descriptor: its number, or an object that has one."""

T = TypeVar("T")
S = TypeVar("S", bound="Struct")


def number(fd: Fd) -> int:
    """The number of a file descriptor."""
    return fd if isinstance(fd, int) else fd.fileno()


@dataclass
class Struct:
    """An object on the wire. What is ``None`` is absent there."""

    NAMES: ClassVar[Mapping[str, str]] = {}
    """Wire names of fields, where they are not the field's with ``-`` for ``_``."""
    TAGS: ClassVar[Mapping[str, str]] = {}
    """What makes it this branch of a union."""

    @classmethod
    def from_wire(cls: Type[S], value: Any) -> S:
        """Reads a JSON object."""
        if not isinstance(value, dict):
            raise ProtocolError(f"{cls.__name__} wants an object, not {value!r}")
        found: Dict[str, Any] = {}
        for name, wire, hint, required in _fields(cls):
            if wire in value:
                found[name] = decode(hint, value[wire])
            elif required:
                raise ProtocolError(f"{cls.__name__} wants a member '{wire}', and has none")
        return cls(**found)

    def to_wire(self) -> Dict[str, Any]:
        """Writes a JSON object."""
        object_: Dict[str, Any] = dict(self.TAGS)
        for name, wire, _, _ in _fields(type(self)):
            value = getattr(self, name)
            if value is not None:
                object_[wire] = encode(value)
        return object_


_Fields = Sequence[Tuple[str, str, Any, bool]]
_FIELDS: Dict[type, _Fields] = {}


def _fields(cls: Type[Struct]) -> _Fields:
    """Name, wire name, type, and whether it must be there, of each field that a caller may set."""
    found = _FIELDS.get(cls)
    if found is None:
        found = _FIELDS[cls] = _find_fields(cls)
    return found


def _find_fields(cls: Type[Struct]) -> _Fields:
    hints = get_type_hints(cls)
    return [
        (
            one.name,
            cls.NAMES.get(one.name, one.name.replace("_", "-")),
            hints[one.name],
            one.default is dataclasses.MISSING,
        )
        for one in dataclasses.fields(cls)
        if one.init
    ]


@dataclass
class Event(Struct):
    """Something that happened."""

    EVENT: ClassVar[str] = ""
    """Its name on the wire."""
    WHOLE: ClassVar[bool] = False
    """Whether its data is one field, ``data``."""

    timestamp: float = field(default=0.0, init=False, compare=False)
    """When, in seconds since the epoch."""


@dataclass
class UnknownEvent(Event):
    """An event of a newer server."""

    name: str
    """Its name on the wire."""
    data: Mapping[str, Any]
    """What came with it."""


def read_event(message: Mapping[str, Any], known: Mapping[str, Type[Event]]) -> Event:
    """Reads an event with its time."""
    name, data = message["event"], message.get("data", {})
    cls = known.get(name)
    event: Event
    if cls is None:
        event = UnknownEvent(name, data)
    else:
        event = cls.from_wire({"data": data} if cls.WHOLE else data)
    time = message.get("timestamp", {})
    event.timestamp = time.get("seconds", 0) + time.get("microseconds", 0) / 1e6
    return event


def encode(value: Any) -> Any:
    """A value for the wire."""
    if isinstance(value, Struct):
        return value.to_wire()
    if isinstance(value, Mapping):
        return {name: encode(one) for name, one in value.items() if one is not None}
    if isinstance(value, (list, tuple)):
        return [encode(one) for one in value]
    return value


def decode(hint: Any, value: Any) -> Any:
    """A value from the wire, as its annotation says."""
    if isinstance(hint, type) and issubclass(hint, Struct):
        return hint.from_wire(value)
    origin = get_origin(hint)
    if origin is list and isinstance(value, list):
        (element,) = get_args(hint)
        return [decode(element, one) for one in value]
    if origin is Union:
        return _decode_union(get_args(hint), value)
    return value


def _decode_union(hints: Sequence[Any], value: Any) -> Any:
    if isinstance(value, list):
        lists = [hint for hint in hints if get_origin(hint) is list]
        return decode(lists[0], value) if lists else value
    if not isinstance(value, dict):
        return value
    for hint in hints:
        if isinstance(hint, type) and issubclass(hint, Struct):
            if all(value.get(tag) == wanted for tag, wanted in hint.TAGS.items()):
                return hint.from_wire(value)
    # A branch that this package does not know: better raw than not at all.
    return value


class Caller:
    """What the generated methods need: something that runs a command."""

    def execute(
        self, command: str, arguments: Any = None, *, fds: Sequence[Fd] = (), oob: bool = False
    ) -> Any:
        """Runs a command; see the client."""
        raise NotImplementedError

    def _run(self, command: str, arguments: Any, fds: Sequence[Fd] = ()) -> None:
        self.execute(command, arguments, fds=fds)

    def _ask(self, command: str, arguments: Any, returns: Type[T], fds: Sequence[Fd] = ()) -> T:
        answer: T = decode(returns, self.execute(command, arguments, fds=fds))
        return answer

    def _ask_any(
        self, command: str, arguments: Any, returns: Any, fds: Sequence[Fd] = ()
    ) -> Any:
        return decode(returns, self.execute(command, arguments, fds=fds))


class AsyncCaller:
    """The same for asyncio."""

    async def execute(
        self, command: str, arguments: Any = None, *, fds: Sequence[Fd] = (), oob: bool = False
    ) -> Any:
        """Runs a command; see the client."""
        raise NotImplementedError

    async def _run(self, command: str, arguments: Any, fds: Sequence[Fd] = ()) -> None:
        await self.execute(command, arguments, fds=fds)

    async def _ask(
        self, command: str, arguments: Any, returns: Type[T], fds: Sequence[Fd] = ()
    ) -> T:
        answer: T = decode(returns, await self.execute(command, arguments, fds=fds))
        return answer

    async def _ask_any(
        self, command: str, arguments: Any, returns: Any, fds: Sequence[Fd] = ()
    ) -> Any:
        return decode(returns, await self.execute(command, arguments, fds=fds))


Kinds = Tuple[Type[Event], ...]


def wanted(kinds: Kinds, event: Event) -> bool:
    """Whether a stream of these kinds takes the event; one of no kinds takes all."""
    return not kinds or isinstance(event, kinds)


__all__: List[str] = []
