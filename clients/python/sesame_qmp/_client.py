"""The client for plain Python: one thread, one command at a time."""

from __future__ import annotations

import socket
import time
from collections import deque
from typing import (
    Any,
    Deque,
    Generic,
    Iterator,
    List,
    Optional,
    Sequence,
    Tuple,
    Type,
    TypeVar,
    Union,
    overload,
)

from ._errors import ConnectionClosed, ProtocolError
from ._protocol import Greeting, Message, Reply, Session
from ._wire import Event, Fd, number, wanted
from .commands import Commands
from .types import VersionInfo

E = TypeVar("E", bound=Event)

Address = Union[str, Tuple[str, int]]
"""The path of a unix socket, or host and port of a TCP one (which passes no fds)."""


class EventStream(Generic[E]):
    """The events of some kinds, from when it was made on.

    Iterating waits for the next one and ends with the connection.
    """

    def __init__(self, client: Client, kinds: Tuple[Type[E], ...]) -> None:
        self._client = client
        self._kinds = kinds
        self._waiting: Deque[E] = deque()

    def get(self, timeout: Optional[float] = None) -> E:
        """The next event; :class:`TimeoutError` if none comes in so many seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._waiting:
            self._client._receive(deadline)
        return self._waiting.popleft()

    def close(self) -> None:
        """Ends the stream; events that nobody took are gone."""
        if self in self._client._streams:
            self._client._streams.remove(self)

    def _offer(self, event: Any) -> None:
        if wanted(self._kinds, event):
            self._waiting.append(event)

    def __iter__(self) -> Iterator[E]:
        return self

    def __next__(self) -> E:
        try:
            return self.get()
        except ConnectionClosed:
            raise StopIteration from None

    def __enter__(self) -> EventStream[E]:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Client(Commands):
    """A QMP session. Every command of the schema is a method; it is not for several threads."""

    def __init__(self, connected: socket.socket, *, timeout: Optional[float] = None) -> None:
        """Takes over a connected socket and negotiates.

        ``timeout`` is how many seconds a command may take; then it ends in :class:`TimeoutError`,
        and its reply, should it come, is passed over.
        """
        self._socket = connected
        self._timeout = timeout
        self._session = Session()
        self._streams: List[EventStream[Any]] = []
        self._replies: List[Reply] = []
        self._greeting: Optional[Greeting] = None
        try:
            deadline = self._deadline()
            while self._greeting is None:
                self._receive(deadline)
            offered = self._greeting.capabilities
            self.execute("qmp_capabilities", {"enable": offered} if offered else None)
        except BaseException:
            self.close()
            raise

    @classmethod
    def connect(cls, address: Address, *, timeout: Optional[float] = None) -> Client:
        """Connects to a monitor."""
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        connected = socket.socket(family, socket.SOCK_STREAM)
        try:
            connected.settimeout(timeout)
            connected.connect(address)
        except BaseException:
            connected.close()
            raise
        return cls(connected, timeout=timeout)

    @property
    def version(self) -> VersionInfo:
        """What the server called itself in its greeting."""
        assert self._greeting is not None, "negotiated when it was made"
        return VersionInfo.from_wire(self._greeting.version)

    def execute(
        self, command: str, arguments: Any = None, *, fds: Sequence[Fd] = (), oob: bool = False
    ) -> Any:
        """Runs any command and returns its JSON; ``fds`` go along and stay the caller's.

        With ``oob`` it overtakes the commands before it, where the schema allows that.
        """
        deadline = self._deadline()
        wanted_id, data = self._session.request(command, arguments, oob)
        self._send(data, [number(fd) for fd in fds], deadline)
        while True:
            for at, reply in enumerate(self._replies):
                if reply.id == wanted_id:
                    # What is before it was asked by commands that ended in a timeout.
                    del self._replies[: at + 1]
                    if reply.error is not None:
                        raise reply.error
                    return reply.value
            self._receive(deadline)

    @overload
    def events(self) -> EventStream[Event]: ...

    @overload
    def events(self, *kinds: Type[E]) -> EventStream[E]: ...

    def events(self, *kinds: Type[Any]) -> EventStream[Any]:
        """A stream of the events of these kinds, or of all, from now on."""
        stream: EventStream[Any] = EventStream(self, kinds)
        self._streams.append(stream)
        return stream

    def close(self) -> None:
        """Ends the session. What it handed over stays with the server."""
        self._socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _deadline(self) -> Optional[float]:
        return None if self._timeout is None else time.monotonic() + self._timeout

    def _wait_until(self, deadline: Optional[float]) -> None:
        if deadline is None:
            self._socket.settimeout(None)
            return
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the server said nothing in time")
        self._socket.settimeout(left)

    def _send(self, data: bytes, fds: List[int], deadline: Optional[float]) -> None:
        try:
            self._wait_until(deadline)
            sent = socket.send_fds(self._socket, [data], fds) if fds else 0
            if sent < len(data):
                self._socket.sendall(data[sent:])
        except socket.timeout:
            # Half a request may be out: nothing that follows would be understood.
            self.close()
            raise TimeoutError("the server does not read") from None
        except OSError as error:
            raise ConnectionClosed(f"cannot send: {error}") from error

    def _receive(self, deadline: Optional[float]) -> None:
        """Waits for bytes and deals out what they say."""
        try:
            self._wait_until(deadline)
            data = self._socket.recv(1 << 16)
        except socket.timeout:
            raise TimeoutError("the server said nothing in time") from None
        except OSError as error:
            raise ConnectionClosed(f"cannot receive: {error}") from error
        if not data:
            raise ConnectionClosed("the server ended the session")
        for message in self._session.receive(data):
            self._take(message)

    def _take(self, message: Message) -> None:
        if isinstance(message, Reply):
            self._replies.append(message)
        elif isinstance(message, Event):
            for stream in self._streams:
                stream._offer(message)
        elif self._greeting is None:
            self._greeting = message
        else:
            raise ProtocolError("a second greeting")
