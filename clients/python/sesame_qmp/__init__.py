"""A typed QMP client that passes file descriptors.

::

    commands, types, events      generated from the schema
            │
    Client (sockets)   AsyncClient (asyncio)
            └──────┬──────┘
              _protocol          bytes in, messages out; knows no socket

>>> from sesame_qmp import Client, events
>>> with Client.connect("qmp.sock") as qmp, open("disk.raw", "r+b") as disk:
...     qmp.getfd("disk", fd=disk)
"""

from . import events, types
from ._aio import AsyncClient, AsyncEventStream
from ._client import Client, EventStream
from ._errors import (
    CommandError,
    CommandNotFound,
    ConnectionClosed,
    DeviceNotActive,
    DeviceNotFound,
    GenericError,
    KvmMissingCap,
    ProtocolError,
    QmpError,
)
from ._version import VERSION as __version__
from ._wire import Event, Fd, Struct, UnknownEvent

__all__ = [
    "AsyncClient",
    "AsyncEventStream",
    "Client",
    "CommandError",
    "CommandNotFound",
    "ConnectionClosed",
    "DeviceNotActive",
    "DeviceNotFound",
    "Event",
    "EventStream",
    "Fd",
    "GenericError",
    "KvmMissingCap",
    "ProtocolError",
    "QmpError",
    "Struct",
    "UnknownEvent",
    "__version__",
    "events",
    "types",
]
