"""The client for asyncio: any number of commands at once."""

from __future__ import annotations

import asyncio
import socket
from typing import (
    Any,
    AsyncIterator,
    Dict,
    Generic,
    List,
    Optional,
    Sequence,
    Tuple,
    Type,
    TypeVar,
    overload,
)

from ._client import Address
from ._errors import ConnectionClosed, ProtocolError, QmpError
from ._protocol import Greeting, Message, Reply, Session
from ._wire import Event, Fd, number, wanted
from .async_commands import AsyncCommands
from .types import VersionInfo

E = TypeVar("E", bound=Event)


def _seen(future: asyncio.Future[Any]) -> None:
    """Keeps asyncio from reporting an exception that nobody is left to ask for."""
    if future.done() and not future.cancelled():
        future.exception()


class AsyncEventStream(Generic[E]):
    """The events of some kinds, from when it was made on.

    Iterating waits for the next one and ends with the connection.
    """

    def __init__(self, client: AsyncClient, kinds: Tuple[Type[E], ...]) -> None:
        self._client = client
        self._kinds = kinds
        self._waiting: asyncio.Queue[Optional[E]] = asyncio.Queue()

    async def get(self, timeout: Optional[float] = None) -> E:
        """The next event; :class:`TimeoutError` if none comes in so many seconds."""
        try:
            event = await asyncio.wait_for(self._waiting.get(), timeout)
        except asyncio.TimeoutError:
            raise TimeoutError("no event in time") from None
        if event is None:
            # For whoever asks next.
            self._waiting.put_nowait(None)
            raise self._client._closed()
        return event

    def close(self) -> None:
        """Ends the stream; events that nobody took are gone."""
        if self in self._client._streams:
            self._client._streams.remove(self)

    def _offer(self, event: Any) -> None:
        if wanted(self._kinds, event):
            self._waiting.put_nowait(event)

    def _end(self) -> None:
        self._waiting.put_nowait(None)

    def __aiter__(self) -> AsyncIterator[E]:
        return self

    async def __anext__(self) -> E:
        try:
            return await self.get()
        except ConnectionClosed:
            raise StopAsyncIteration from None

    def __enter__(self) -> AsyncEventStream[E]:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class AsyncClient(AsyncCommands):
    """A QMP session. Every command of the schema is a coroutine; they may run side by side."""

    def __init__(self, connected: socket.socket) -> None:
        """Takes over a connected socket; :meth:`negotiate` comes next."""
        connected.setblocking(False)
        self._socket = connected
        self._session = Session()
        self._streams: List[AsyncEventStream[Any]] = []
        self._waiting: Dict[Any, asyncio.Future[Any]] = {}
        self._sending = asyncio.Lock()
        self._greeting: asyncio.Future[Greeting] = asyncio.get_running_loop().create_future()
        self._why: Optional[QmpError] = None
        self._reader = asyncio.ensure_future(self._read())

    @classmethod
    async def connect(cls, address: Address) -> AsyncClient:
        """Connects to a monitor and negotiates."""
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        connected = socket.socket(family, socket.SOCK_STREAM)
        try:
            connected.setblocking(False)
            await asyncio.get_running_loop().sock_connect(connected, address)
        except BaseException:
            connected.close()
            raise
        client = cls(connected)
        try:
            await client.negotiate()
        except BaseException:
            await client.close()
            raise
        return client

    async def negotiate(self) -> None:
        """Waits for the greeting and accepts what it offers."""
        offered = (await asyncio.shield(self._greeting)).capabilities
        await self.execute("qmp_capabilities", {"enable": offered} if offered else None)

    @property
    def version(self) -> VersionInfo:
        """What the server called itself in its greeting."""
        return VersionInfo.from_wire(self._greeting.result().version)

    async def execute(
        self, command: str, arguments: Any = None, *, fds: Sequence[Fd] = (), oob: bool = False
    ) -> Any:
        """Runs any command and returns its JSON; ``fds`` go along and stay the caller's.

        With ``oob`` it overtakes the commands before it, where the schema allows that. If the
        caller is cancelled the command runs all the same, and its reply is passed over.
        """
        if self._why is not None:
            raise self._closed()
        request_id, data = self._session.request(command, arguments, oob)
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = reply
        try:
            # Half a request would spoil all that follow: a caller that leaves does not stop it.
            await asyncio.shield(self._send(data, [number(fd) for fd in fds]))
            return await reply
        finally:
            self._waiting.pop(request_id, None)
            _seen(reply)

    @overload
    def events(self) -> AsyncEventStream[Event]: ...

    @overload
    def events(self, *kinds: Type[E]) -> AsyncEventStream[E]: ...

    def events(self, *kinds: Type[Any]) -> AsyncEventStream[Any]:
        """A stream of the events of these kinds, or of all, from now on."""
        stream: AsyncEventStream[Any] = AsyncEventStream(self, kinds)
        self._streams.append(stream)
        return stream

    async def close(self) -> None:
        """Ends the session. What it handed over stays with the server."""
        self._end(ConnectionClosed("the client ended the session"))
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        self._socket.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def _send(self, data: bytes, fds: List[int]) -> None:
        loop = asyncio.get_running_loop()
        async with self._sending:
            try:
                sent = await self._send_fds(data, fds) if fds else 0
                if sent < len(data):
                    await loop.sock_sendall(self._socket, data[sent:])
            except OSError as error:
                raise ConnectionClosed(f"cannot send: {error}") from error

    async def _send_fds(self, data: bytes, fds: List[int]) -> int:
        while True:
            try:
                return socket.send_fds(self._socket, [data], fds)
            except BlockingIOError:
                await self._writable()

    async def _writable(self) -> None:
        loop = asyncio.get_running_loop()
        writable: asyncio.Future[None] = loop.create_future()

        def ready() -> None:
            if not writable.done():
                writable.set_result(None)

        loop.add_writer(self._socket, ready)
        try:
            await writable
        finally:
            loop.remove_writer(self._socket)

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                data = await loop.sock_recv(self._socket, 1 << 16)
                if not data:
                    raise ConnectionClosed("the server ended the session")
                for message in self._session.receive(data):
                    self._take(message)
        except OSError as error:
            self._end(ConnectionClosed(str(error)))
        except QmpError as error:
            self._end(error)

    def _take(self, message: Message) -> None:
        if isinstance(message, Reply):
            future = self._waiting.get(message.id)
            if future is None or future.done():
                return
            if message.error is None:
                future.set_result(message.value)
            else:
                future.set_exception(message.error)
        elif isinstance(message, Event):
            for stream in self._streams:
                stream._offer(message)
        elif self._greeting.done():
            raise ProtocolError("a second greeting")
        else:
            self._greeting.set_result(message)

    def _end(self, why: QmpError) -> None:
        """Tells whoever waits that nothing more comes."""
        if self._why is not None:
            return
        self._why = why
        for future in [self._greeting, *self._waiting.values()]:
            if not future.done():
                future.set_exception(why)
        _seen(self._greeting)
        for stream in self._streams:
            stream._end()

    def _closed(self) -> QmpError:
        """A fresh exception, since one that was raised carries its traceback along."""
        why = self._why or ConnectionClosed("the session has ended")
        return type(why)(*why.args)
