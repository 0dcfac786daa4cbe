"""QMP without a socket: requests to bytes, bytes to replies and events.

::

    Greeting ──► request qmp_capabilities ──► Reply ──► any requests, Replies by id, Events
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Tuple, Union

from ._errors import CommandError, ProtocolError, refusal
from ._wire import Event, encode, read_event
from .events import EVENTS

LONGEST = 64 << 20
"""No message is longer, in bytes."""


@dataclass
class Greeting:
    """The server's first words."""

    version: Mapping[str, Any]
    capabilities: List[str]


@dataclass
class Reply:
    """The answer to a request."""

    id: Any
    value: Any = None
    error: Optional[CommandError] = None


Message = Union[Greeting, Reply, Event]


class Session:
    """One session's side of the conversation."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = 0
        self._pretty = False
        self._last_id = 0
        self._commands: Dict[int, str] = {}

    def request(self, command: str, arguments: Any, oob: bool) -> Tuple[int, bytes]:
        """A request with an id of its own."""
        self._last_id += 1
        message: Dict[str, Any] = {"exec-oob" if oob else "execute": command}
        arguments = encode(arguments)
        if arguments:
            message["arguments"] = arguments
        message["id"] = self._last_id
        self._commands[self._last_id] = command
        return self._last_id, json.dumps(message).encode() + b"\n"

    def receive(self, data: bytes) -> List[Message]:
        """What the server said with this and the bytes before it."""
        self._buffer += data
        messages: List[Message] = []
        while True:
            line = self._complete()
            if line is None:
                return messages
            if line.strip():
                messages.append(self._message(line))

    def _complete(self) -> Optional[bytes]:
        """The bytes of the first whole message.

        A message is one line. With ``pretty=on`` it is several: from a line that is ``{`` to one
        that is ``}``, both without indentation.
        """
        while True:
            end = self._buffer.find(b"\n", self._searched)
            if end < 0:
                if len(self._buffer) > LONGEST:
                    raise ProtocolError(f"a message of more than {LONGEST} bytes")
                return None
            line = self._buffer[self._searched : end].rstrip()
            if self._searched == 0:
                self._pretty = line == b"{"
            self._searched = end + 1
            if not self._pretty or line == b"}":
                message = bytes(self._buffer[:end])
                del self._buffer[: end + 1]
                self._searched = 0
                return message

    def _message(self, line: bytes) -> Message:
        try:
            message = json.loads(line)
        except ValueError as error:
            raise ProtocolError(f"not JSON: {line[:80]!r}") from error
        try:
            return self._read(message)
        except (AttributeError, KeyError, TypeError) as error:
            raise ProtocolError(f"not QMP: {line[:80]!r}") from error

    def _read(self, message: Any) -> Message:
        if "event" in message:
            return read_event(message, EVENTS)
        if "QMP" in message:
            greeting = message["QMP"]
            return Greeting(greeting["version"], greeting["capabilities"])
        command = self._commands.pop(message.get("id", 0), "?")
        if "error" in message:
            error = message["error"]
            refused = refusal(command, error["class"], error["desc"])
            return Reply(message.get("id"), error=refused)
        return Reply(message.get("id"), message.get("return"))
